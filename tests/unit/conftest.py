"""Fixtures of the unit tests: a service in this process, without Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from client.vision_agent_client import VisionAgentClient
from tests.in_process import Service, running_service


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """A fresh service with its own port."""
    async with running_service() as running:
        yield running


@pytest.fixture
async def client(service: Service) -> AsyncIterator[VisionAgentClient]:
    """A connected client."""
    async with VisionAgentClient(service.target) as connected:
        yield connected
