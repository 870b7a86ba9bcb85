"""A call that ended with a status leaves nothing of its request behind."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import grpc
import grpc.aio
import pytest

from groundstream.protos import vision_agent_pb2 as pb
from tests.in_process import running_service

_METHOD = "/vision_agent.v1.VisionAgent"
_PICTURE_BYTES = 1_000_000
_NUM_CALLS = 5


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector comes by seldom in a front end, whose objects are few and frozen."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("method", ["Ground", "GroundAnytime"])
@pytest.mark.usefixtures("no_collector")
async def test_a_refused_picture_is_let_go_of(method: str) -> None:
    no_picture = pb.Frame(encoded_image=bytes(_PICTURE_BYTES))
    queries = [pb.Query(id="q", text="dog")]
    request = pb.GroundRequest(frame=no_picture, queries=queries).SerializeToString()

    async with (
        running_service() as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        call = channel.unary_stream(f"{_METHOD}/{method}")

        async def refused() -> None:
            with pytest.raises(grpc.aio.AioRpcError) as told:
                async for _ in call(request):
                    pass
            assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT

        await refused()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(_NUM_CALLS):
                await refused()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # The last call may still be on its way out.
    assert after - before < 2.5 * _PICTURE_BYTES
