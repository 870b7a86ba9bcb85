"""`groundstream serve` as an operator sees it: health, full queues, metrics, logs, the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli import build_app
from deployments.local.service_process import free_port
from groundstream import aio
from groundstream.errors import Overloaded
from groundstream.events import Drain, StreamEvent, StreamStats
from groundstream.types import FrameResult, OutgoingFrame, StreamPolicy
from groundstream.watch_stream import Reconnect
from tests.integration.conftest import ROOT, write_fake_config
from tests.pictures import encoded_image

_READY_S = 120.0
_GRACE_S = 5.0
_SECRET = "zebra-crossing-of-the-client"


async def _frames() -> AsyncIterator[OutgoingFrame]:
    for number in range(10_000):
        yield OutgoingFrame(encoded_image(7), number, capture_time_ns=time.time_ns())
        await asyncio.sleep(0.05)


async def health(target: str, name: str = "") -> int:
    command = ["health", target, "--name", name]
    result = await asyncio.to_thread(CliRunner().invoke, build_app(), command)
    return result.exit_code


async def test_health_metrics_logs_and_a_drain_with_an_open_stream(
    empty_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("REDIS_URL", raising=False)
    config, port, page = write_fake_config(empty_model, tmp_path), free_port(), free_port()
    loaded = yaml.safe_load(config.read_text())
    loaded["applications"][0]["args"]["observe"] |= {"metrics_port": page, "log_format": "json"}
    (language,) = (d for d in loaded["applications"][0]["deployments"] if d["name"] == "Language")
    language |= {"max_ongoing_requests": 3, "max_queued_requests": 3}
    config.write_text(yaml.safe_dump(loaded))
    target, logs = f"127.0.0.1:{port}", tmp_path / "logs"
    command = [
        sys.executable, "-m", "deployments.cli", "serve", "--config", str(config),
        "--port", str(port), "--logs", str(logs),
    ]  # fmt: skip
    output = (tmp_path / "output.txt").open("w")
    process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        async with aio.Client(target) as client:
            await client.wait_until_ready(_READY_S)
            assert [await health(target, name) for name in ("", "live", empty_model.name)] == [
                0
            ] * 3
            assert await health(target, "another model") == 1
            with pytest.raises(Exception, match="request id"):
                await client.ground(encoded_image(8), [f"crash {_SECRET}"])

            await _ask_for_more_than_the_queue_holds(client)

            events, told_s = list[StreamEvent](), None
            never = Reconnect(max_attempts=0)
            stream = client.watch(_frames(), ["dog"], policy=StreamPolicy(), reconnect=never)
            async with asyncio.timeout(60.0), stream as watched:
                async for event in watched:
                    events.append(event)
                    num = sum(isinstance(seen, FrameResult) for seen in events)
                    if told_s is None and num >= 10:
                        text = await asyncio.to_thread(_read, page)
                        assert "groundstream_open_streams 1.0" in text
                        assert 'groundstream_stage_calls_total{stage="language"}' in text
                        assert _SECRET not in text
                        told_s = time.monotonic()
                        process.send_signal(signal.SIGTERM)
        assert any(isinstance(event, Drain) for event in events)
        last = events[-1]
        assert isinstance(last, StreamStats)
        assert (last.balanced, last.in_flight) == (True, 0)
        # The stages outlive the streams, and one frame may be on the wire when a stream ends.
        assert last.failed == 0
        assert watched.num_sent - last.received <= 1
        assert await asyncio.to_thread(process.wait, 40.0) == 0
        assert told_s is not None
        print(f"gone {time.monotonic() - told_s:.1f} s after SIGTERM")
    finally:
        process.kill()
        output.close()
    _check_logs(logs)


async def _ask_for_more_than_the_queue_holds(client: aio.Client) -> None:
    """Whoever finds no room is told so by type, with a hint; nobody gets INTERNAL."""
    answers = await asyncio.gather(
        *(client.ground(encoded_image(number), ["slow dog"]) for number in range(12)),
        return_exceptions=True,
    )
    refused = [answer for answer in answers if not isinstance(answer, FrameResult)]
    assert 1 <= len(refused) < len(answers)
    assert all(isinstance(error, Overloaded) for error in refused), refused
    assert all(error.retry_after_s is not None for error in refused)
    assert (await client.ground(encoded_image(99), ["dog"]))["dog"].detections
    (language,) = (s for s in (await client.stats()).stages if s.name == "language")
    assert (language.num_refused, language.in_flight) == (len(refused), 0)


def _read(page: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{page}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def _check_logs(logs: Path) -> None:
    """One JSON object a line, the failure with its request id, nothing of what was asked."""
    lines = [
        line
        for path in logs.rglob("worker-*.err")
        for line in path.read_text(errors="replace").splitlines()
        if '"level"' in line
    ]
    records = [json.loads(line) for line in lines]
    failed = [record for record in records if "failed" in record["message"]]
    assert failed
    assert all(record["request_id"] and record["exception"] for record in failed)
    assert _SECRET not in "".join(lines)
