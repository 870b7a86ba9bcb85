"""The client that waits, plain iterables before it, and the examples of its README."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundstream import Client
from groundstream.errors import InvalidFrame, InvalidQuery, SourceError
from groundstream.events import QueriesAck, StreamOpened, StreamStats
from groundstream.pulled import Pulled
from groundstream.types import FrameResult, OutgoingFrame, StreamPolicy
from tests.in_process import GROUND, running_service
from tests.pictures import encoded_image

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "client/README.md").read_text(), re.DOTALL)


def frames(count: int) -> Iterator[OutgoingFrame]:
    for number in range(count):
        yield OutgoingFrame(encoded_image(number), number)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
async def test_the_examples_of_the_readme_run(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "tests/assets/cat.jpg", tmp_path / "photo.jpg")
    shutil.copy(ROOT / "demo/scene.mp4", tmp_path / "street.mp4")
    monkeypatch.chdir(tmp_path)
    async with running_service() as service:
        code = EXAMPLES[number].replace("127.0.0.1:50051", service.target)
        await asyncio.to_thread(exec, code, {"__name__": "__main__"})
    assert len(EXAMPLES) == 3
    assert capsys.readouterr().out.count("\n") >= 1


async def test_calls_and_their_errors_are_those_of_the_asyncio_client() -> None:
    def use(target: str) -> None:
        with Client(target) as client:
            client.wait_until_ready(10.0)
            assert client.capabilities().model_name == "fake"
            assert client.ground(encoded_image(1), ["dog"])["dog"].detections
            said = list(client.ask(encoded_image(1), "dog"))
            assert isinstance(said[-1], FrameResult)
            revisions = list(client.ground_anytime(encoded_image(1), ["dog"]))
            assert [one.revision.number for one in revisions if one.revision] == list(
                range(len(revisions))
            )
            assert client.stats().uptime_s > 0
            with pytest.raises(InvalidFrame):
                client.ground(b"no picture", ["dog"])
            for call in (client.ground, client.watch):
                with pytest.raises(InvalidQuery, match="queries are a list"):
                    call(encoded_image(1), "bus")

    async with running_service() as service:
        await asyncio.to_thread(use, service.target)


async def test_a_stream_of_plain_frames_closes_its_books() -> None:
    def use(target: str) -> list[object]:
        policy = StreamPolicy(mode=GROUND.mode)
        with Client(target) as client, client.watch(frames(5), ["dog"], policy=policy) as stream:
            events: list[object] = []
            for event in stream:
                events.append(event)
                if isinstance(event, StreamOpened):
                    assert stream.put_query("cat") == 2
            assert stream.num_sent == 5
            return events

    async with running_service() as service:
        events = await asyncio.to_thread(use, service.target)
    assert [event.change_id for event in events if isinstance(event, QueriesAck)] == [1, 2]
    last = events[-1]
    assert isinstance(last, StreamStats)
    assert last.balanced
    assert (last.received, last.ended) == (5, True)


async def test_what_the_frames_raise_is_raised_after_the_answers() -> None:
    def broken() -> Iterator[OutgoingFrame]:
        yield from frames(1)
        raise SourceError("unplugged")

    def use(target: str) -> None:
        with Client(target) as client, client.watch(broken(), ["dog"]) as stream:
            results = stream.results()
            assert next(results).sequence == 0
            with pytest.raises(SourceError, match="unplugged"):
                list(results)

    async with running_service() as service:
        await asyncio.to_thread(use, service.target)


def test_nothing_is_left_when_frames_never_come() -> None:
    released = threading.Event()
    closed = threading.Event()

    def silent() -> Iterator[OutgoingFrame]:
        try:
            released.wait(20.0)
            yield OutgoingFrame(b"")
        finally:
            closed.set()

    async def give_up() -> None:
        pulled = Pulled(silent())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(pulled), 0.05)
        await pulled.aclose()

    started_s = time.monotonic()
    asyncio.run(give_up())
    assert time.monotonic() - started_s < 5.0
    released.set()
    assert closed.wait(5.0)
