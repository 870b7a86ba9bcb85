"""The far end of `tests/remote_stream.py`: a client that streams until its standard input ends.

It shows a scene that stands still, asks a single question now and then, and hands over all it sees
as it sees it.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import time

from groundstream import aio
from groundstream.errors import AgentError
from groundstream.events import StreamEvent
from tests.cameras import Camera
from tests.pictures import encoded_image, numbered
from tests.remote_stream import LENGTH
from tests.stream_records import Asked, Finished, Seen

QUERIES = ("slow dog", "absent cat")
"""Slow, so that a stage that is killed is killed at work."""
_READY_S = 120.0
_FRAME_S = 0.1
_ASK_S = 0.3
_ASK_TIMEOUT_S = 5.0
_SINGLE = 1_000_000
"""Pictures of single questions are numbered from here."""


async def _stream(front_ends: list[str]) -> None:
    scene = encoded_image(77)
    camera = Camera(lambda: numbered(scene, camera.num_sent), every_s=_FRAME_S)
    for front_end in front_ends:
        async with aio.Client(front_end) as client:
            await client.wait_until_ready(_READY_S)
    async with aio.Client(f"ipv4:{','.join(front_ends)}") as client:
        asyncio.get_running_loop().add_reader(0, lambda: setattr(camera, "is_on", False))
        async with client.watch(camera.frames(), QUERIES) as watched:
            asking = asyncio.create_task(_ask(client, camera, scene))
            async for event in watched:
                _tell(event)
            await asking
        _tell(Finished(camera.num_sent, watched.num_sent, watched.num_unsent))


async def _ask(client: aio.Client, camera: Camera, scene: bytes) -> None:
    number = _SINGLE
    while camera.is_on:
        started_s, number, error = time.monotonic(), number + 1, ""
        try:
            await client.ground(numbered(scene, number), QUERIES[:1], timeout_s=_ASK_TIMEOUT_S)
        except AgentError as failed:
            error = f"{type(failed).__name__}: {failed}"
        _tell(Asked(error, time.monotonic() - started_s))
        await asyncio.sleep(_ASK_S)


def _tell(event: StreamEvent | Asked | Finished) -> None:
    encoded = pickle.dumps(Seen(time.monotonic(), event))
    sys.stdout.buffer.write(LENGTH.pack(len(encoded)) + encoded)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(_stream(sys.argv[1:]))
