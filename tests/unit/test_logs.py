"""Log lines with the id of the request they are about, in both formats."""

from __future__ import annotations

import asyncio
import builtins
import json
import logging
import sys

import pytest
from ray.serve._private import logging_utils

from deployments.observability.logs import JsonFormatter, TextFormatter, configure_logs
from deployments.observability.request_context import request_id, serving_request
from deployments.wire.status import failure_of


def record(message: str, *, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("deployments.x", logging.ERROR, "x.py", 1, message, (), info)


def test_json_is_one_line_whatever_is_in_it() -> None:
    try:
        raise KeyError("k")
    except KeyError as error:
        made = record('two\nlines and "quotes"', error=error)
    with serving_request((("x-request-id", "robot-7"),)):
        line = JsonFormatter().format(made)
    assert "\n" not in line
    loaded = json.loads(line)
    assert loaded.pop("time").endswith("+00:00")
    assert "KeyError" in loaded.pop("exception")
    assert loaded == {
        "level": "ERROR",
        "logger": "deployments.x",
        "message": 'two\nlines and "quotes"',
        "request_id": "robot-7",
    }


def test_text_names_the_request_where_there_is_one() -> None:
    assert TextFormatter().format(record("m")).endswith("ERROR deployments.x: m")
    with serving_request((("x-request-id", "robot-7"),)):
        assert TextFormatter().format(record("m")).endswith("ERROR deployments.x [robot-7]: m")


@pytest.mark.parametrize("brought", ["", "a b", "x" * 65, "line\nbreak", b"bytes", "é"])
def test_an_id_that_may_not_stand_in_logs_is_replaced(brought: str | bytes) -> None:
    with serving_request((("x-request-id", brought),)) as used:
        assert len(used) == 32
        assert request_id() == used
    assert request_id() == ""


def test_a_bug_quotes_the_request_it_happened_in() -> None:
    with serving_request((("x-request-id", "robot-7"),)):
        assert failure_of(RuntimeError("secret")).request_id == "robot-7"


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_traceback_is_text_although_serve_replaces_print(
    formatter: logging.Formatter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "print", logging_utils.redirected_print)
    try:
        raise KeyError("k")
    except KeyError as error:
        line = formatter.format(record("m", error=error))
    text = json.loads(line)["exception"] if line.startswith("{") else line.partition("\n")[2]
    assert text.startswith("Traceback (most recent call last):\n  File ")
    assert text.endswith("\nKeyError: 'k'")
    assert "',)" not in text


async def test_the_error_of_a_task_that_nobody_awaits_is_kept(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("agent", "deployments", "client", "asyncio")
    before = {name: logging.getLogger(name).handlers for name in names}
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    configure_logs("text")
    try:

        async def lost() -> None:
            raise KeyError("lost")

        task = asyncio.ensure_future(lost())
        await asyncio.sleep(0)
        del task
    finally:
        for name, handlers in before.items():
            logging.getLogger(name).handlers = handlers
    said = capfd.readouterr().err
    assert "ERROR asyncio: Task exception was never retrieved" in said
    assert "KeyError: 'lost'" in said
