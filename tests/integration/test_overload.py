"""More calls at once than a stage's queue holds; real Serve."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path

import pytest

from agent.settings import CacheSettings
from deployments.local.supervisor import LocalService
from groundstream import aio
from groundstream.errors import Overloaded
from groundstream.types import FrameResult
from tests.integration.conftest import ROOT, fake_config
from tests.pictures import encoded_image

pytestmark = [pytest.mark.integration, pytest.mark.slow]


async def test_calls_beyond_the_queue_are_overloaded_and_the_others_are_answered(
    empty_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("REDIS_URL", raising=False)
    config = fake_config(empty_model, CacheSettings())
    narrow = [
        dataclasses.replace(entry, max_ongoing_requests=3, max_queued_requests=3)
        if entry.name == "Language"
        else entry
        for entry in config.deployments
    ]
    running = LocalService(dataclasses.replace(config, deployments=tuple(narrow)))
    with contextlib.ExitStack() as stack:
        stack.callback(running.stop)
        running.start()
        async with aio.Client(running.target) as client:
            answers = await asyncio.gather(
                *(client.ground(encoded_image(number), ["slow dog"]) for number in range(12)),
                return_exceptions=True,
            )
            # Whoever found no room is told so by type, with a hint; nobody gets INTERNAL.
            refused = [answer for answer in answers if not isinstance(answer, FrameResult)]
            assert 1 <= len(refused) < len(answers)
            assert all(isinstance(error, Overloaded) for error in refused), refused
            assert all(error.retry_after_s is not None for error in refused)
            assert (await client.ground(encoded_image(99), ["dog"]))["dog"].detections
            (language,) = (s for s in (await client.stats()).stages if s.name == "language")
            assert (language.num_refused, language.in_flight) == (len(refused), 0)
