"""How our processes log: plain lines, or one JSON object a line with the request's id.

Set up once by every replica. Serve puts what replicas write to `sys.stderr` into its own log as
INFO, which is below the level we ask of Serve; so ours goes to the process's real standard error,
which Ray keeps as `worker-*.err`, and so does what asyncio says of tasks whose errors nobody
awaits. What clients send is never logged.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import traceback
from typing import Any

from deployments.observability.request_context import request_id

_OURS = ("agent", "deployments", "groundstream", "asyncio")


class _Formatter(logging.Formatter):
    """Writes tracebacks without `print`, in whose place Serve has one that writes tuples."""

    def formatException(self, ei: Any) -> str:
        """The traceback as text."""
        return "".join(traceback.format_exception(*ei)).rstrip("\n")


class JsonFormatter(_Formatter):
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


class TextFormatter(_Formatter):
    """A plain line: time, level, logger, request id where there is one, message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record as text, a traceback after it."""
        current = request_id()
        record.request = f" [{current}]" if current else ""
        return super().format(record)


def configure_logs(log_format: str) -> None:
    """Have our own loggers write to the real standard error; those of libraries stay.

    Args:
        log_format: text or json, see `ObserveSettings`.
    """
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    for name in _OURS:
        logging.getLogger(name).handlers = [handler]


class _NoMetadata(logging.Filter):
    """gRPC logs metadata that is not UTF-8 in full, which may be a credential."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Everything but that."""
        return not str(record.msg).startswith("Invalid encoding")


_NO_METADATA = _NoMetadata()


def keep_metadata_out_of_logs() -> None:
    """What callers send beside their messages is in no log; may be called again."""
    for name in ("grpc._cython.cygrpc", "grpc._common"):
        logging.getLogger(name).addFilter(_NO_METADATA)
