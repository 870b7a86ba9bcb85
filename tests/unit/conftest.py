"""Fixtures of the unit tests: a service in this process, without Ray, and tokenizers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.model.checkpoint import read_config
from agent.model_directory import find_model
from agent.model_tokenizer import model_tokenizer
from agent.tokenizer import PromptTokenizer
from groundstream import aio
from groundstream.types import OutgoingPacket
from tests.clips import packets_of, write_clip
from tests.in_process import Service, running_service

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"


@pytest.fixture(scope="module", params=["embedded", "published"])
def tokenizer(request: pytest.FixtureRequest) -> PromptTokenizer:
    """The embedded model's, and one in the published layout."""
    if request.param == "embedded":
        folder = find_model().path
        return model_tokenizer(folder, read_config(folder))
    return PromptTokenizer.from_directory(GOLDEN)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """A fresh service with its own port."""
    async with running_service() as running:
        yield running


@pytest.fixture
async def client(service: Service) -> AsyncIterator[aio.Client]:
    """A connected client."""
    async with aio.Client(service.target) as connected:
        yield connected


@pytest.fixture(scope="session")
def packets(tmp_path_factory: pytest.TempPathFactory) -> list[OutgoingPacket]:
    """Forty pictures of H.264 with B pictures; every fifteenth is a key frame."""
    return packets_of(write_clip(tmp_path_factory.mktemp("clips") / "a.mp4", 40, b_frames=2))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[OutgoingPacket]:
    """Forty pictures without B pictures."""
    return packets_of(write_clip(tmp_path_factory.mktemp("clips") / "b.mp4", 40))
