"""The cluster's configuration under a real `serve deploy`, its GPUs overridden to none: it answers
over TLS, and goes through updates under an open stream (`make test-long`)."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli import build_app
from deployments.cluster.render import SERVE_CONFIG
from deployments.local import process_session
from deployments.local.service_process import free_port
from groundstream import aio
from groundstream.channel import TlsOptions
from groundstream.events import Drain, KeyframeAnswer, StreamError, StreamOpened, StreamStats
from tests import ray_commands
from tests.cameras import Camera
from tests.certificates import Authority
from tests.integration.conftest import FAKES, RedisSwitch
from tests.pictures import encoded_image, numbered
from tests.processes import replicas
from tests.stream_records import Finished, Seen, StreamRecord

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
takes_minutes = pytest.mark.skipif(
    "UPDATES" not in os.environ, reason="takes a minute; UPDATES=1 runs it"
)

_READY_S = 180.0
_UPDATE_S = 240.0
_SNAPSHOT_S = 2.0
"""Snapshots are written every second."""
_STEADY = 5
"""So many answers of the model: all is well."""
_SCENE = encoded_image(77)
_QUERIES = ("dog", "absent cat")


@dataclass
class Cluster:
    """One node, what is deployed there, and how to reach it."""

    dashboard: str
    environment: dict[str, str]
    config: dict[str, Any]
    file: Path
    target: str
    tls: TlsOptions
    token: str
    head: int
    """Process id of the head; all replicas descend from it."""

    def deploy(self) -> None:
        """`serve deploy` of the configuration as it is now."""
        self.file.write_text(yaml.safe_dump(self.config))
        ray_commands.deploy(self.file, self.dashboard, self.environment)

    def client(self) -> aio.Client:
        return aio.Client(self.target, tls=self.tls, token=self.token)

    @property
    def args(self) -> dict[str, Any]:
        args: dict[str, Any] = self.config["applications"][0]["args"]
        return args


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, redis_switch: RedisSwitch
) -> Iterator[Cluster]:
    """The service on a Ray of its own, as `ray start --head` makes it."""
    redis_switch.on()
    folder, dashboard, port = tmp_path_factory.mktemp("ray"), free_port(), free_port()
    environment = ray_commands.environment() | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = ray_commands.ray_start(
        "--head", "--num-cpus=4", f"--port={free_port()}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", folder=folder,
    )  # fmt: skip
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    authority = Authority(folder, "authority")
    own = authority.sign("service")
    keys = folder / "keys.yaml"
    made = CliRunner().invoke(build_app(), ["key", "acme", "--keys", str(keys)])
    cluster = Cluster(
        dashboard=f"http://127.0.0.1:{dashboard}",
        environment=environment,
        config=without_gpus(yaml.safe_load(SERVE_CONFIG.read_text())),
        file=folder / "serve_config.yaml",
        target=f"127.0.0.1:{port}",
        tls=TlsOptions(authority.path),
        token=made.stdout.strip(),
        head=head.pid,
    )
    chain = {"certificate_chain": str(own.chain), "private_key": str(own.key)}
    cluster.args["model"] = str(model_of(folder / "first", width=3))
    cluster.args["server"] |= {"host": "127.0.0.1", "port": port, "tls": chain}
    cluster.args["access"]["api_keys"] = str(keys)
    cluster.args["cache"]["url"] = redis_switch.url
    try:
        cluster.deploy()
        yield cluster
    finally:
        process_session.kill(head.pid)
        head.wait()


def without_gpus(config: dict[str, Any]) -> dict[str, Any]:
    """The same for this machine: no GPU, and stand-ins for the models."""
    (application,) = config["applications"]
    application["args"] |= {"device": "cpu", "compiled": False, "stages": asdict(FAKES)}
    application["args"]["observe"] |= {"metrics_host": "127.0.0.1", "metrics_port": 0}
    # The scene stands still; the model is to look at it often all the same.
    application["args"]["stream"]["follow"] = {"keyframe": {"refresh_s": 0.5}}
    for deployment in application["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0.1, "num_gpus": 0}
        # One node has one front end.
        deployment["autoscaling_config"]["min_replicas"] = 1
    return config


def model_of(folder: Path, *, width: int) -> Path:
    """A model whose region features are so wide; it cannot read those of another width."""
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"fake_width": {width}}}')
    return folder


async def test_it_deploys_and_answers_over_tls(cluster: Cluster) -> None:
    async with cluster.client() as client:
        await client.wait_until_ready(_READY_S)
        assert (await client.ground(encoded_image(1), ["dog"]))["dog"].detections


@takes_minutes
async def test_changed_settings_under_an_open_stream(cluster: Cluster) -> None:
    cluster.args["stream"]["max_queries"] = 5
    await stream_through_update(cluster)
    async with cluster.client() as client:
        assert (await client.capabilities()).max_queries == 5


@takes_minutes
async def test_another_model_under_an_open_stream(cluster: Cluster, tmp_path: Path) -> None:
    cluster.args["model"] = str(model_of(tmp_path / "second", width=5))
    await stream_through_update(cluster)
    async with cluster.client() as client:
        assert (await client.capabilities()).model_name == "second"


async def stream_through_update(cluster: Cluster) -> None:
    """A stream is open before an update, is sent elsewhere, and goes on as if nothing had been."""
    camera = Camera(lambda: numbered(_SCENE, time.monotonic_ns()), every_s=0.1)
    record = StreamRecord()
    (before,) = replicas("Ingress", of=cluster.head)
    async with asyncio.timeout(_UPDATE_S), cluster.client() as client:
        await client.wait_until_ready(_READY_S)
        updating = asyncio.create_task(update(cluster, record))
        async with client.watch(camera.frames(), _QUERIES) as stream:
            async for event in stream:
                record.entries.append(Seen(time.monotonic(), event))
                camera.is_on = not is_well_again(record)
        began_s = await updating
    finished = Finished(camera.num_sent, stream.num_sent, stream.num_unsent)
    record.entries.append(Seen(time.monotonic(), finished))
    report(record, began_s)
    record.check(_QUERIES[0])
    assert len(record.of(Drain)) == 1
    assert len(record.of(StreamOpened)) == 2
    (after,) = replicas("Ingress", of=cluster.head)
    assert after.pid != before.pid


async def update(cluster: Cluster, record: StreamRecord) -> float:
    """Deploys once the stream is known well enough to be resumed; returns when that began."""
    while not record.of(KeyframeAnswer):
        await asyncio.sleep(0.1)
    await asyncio.sleep(_SNAPSHOT_S)
    began_s = time.monotonic()
    await asyncio.to_thread(cluster.deploy)
    return began_s


def is_well_again(record: StreamRecord) -> bool:
    """Whether the stream has moved, and the model answers it there."""
    opened_s = record.times_s(StreamOpened)
    return len(opened_s) > 1 and len(record.of(KeyframeAnswer, opened_s[-1])) >= _STEADY


def report(record: StreamRecord, began_s: float) -> None:
    """What docs/cluster.md says of it."""
    answers_s = record.times_s(KeyframeAnswer)
    pauses = [(after - before, before) for before, after in itertools.pairwise(answers_s)]
    longest_s, from_s = max(pauses)
    (moved,) = record.times_s(StreamOpened, began_s)
    print(
        f"told to go {record.times_s(Drain)[0] - began_s:.1f} s after the command, resumed after "
        f"{moved:.1f} s; longest silence {record.longest_silence_s:.2f} s, of the model "
        f"{longest_s:.1f} s from {from_s - began_s:.1f} s on; frames failed: "
        f"{len(record.of(StreamError))}, gaps: {[o.gap for o in record.of(StreamOpened)]}, "
        f"{record.of(Finished)}, {record.of(StreamStats)[-1]}"
    )
