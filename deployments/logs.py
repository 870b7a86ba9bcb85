"""How our processes log: plain lines, or one JSON object a line with the request's id.

Set up once by whoever owns a process. What clients send is never logged, by nobody.
"""

from __future__ import annotations

import datetime
import json
import logging

from deployments.request_context import request_id

_OURS = ("agent", "deployments", "client")


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, request_id, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; absent things are left out."""
        moment = datetime.datetime.fromtimestamp(record.created, tz=datetime.UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id():
            line["request_id"] = current
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logs(log_format: str) -> None:
    """Have our own loggers write to standard error in one format; those of libraries stay.

    Args:
        log_format: text or json, see `ObserveSettings`.
    """
    if log_format != "json":
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
