"""The cluster's configuration under a real `serve deploy`, its GPUs overridden to none."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from client.channel import TlsOptions
from client.service_process import free_port
from client.vision_agent_client import VisionAgentClient
from deployments import process_session
from deployments.cli import build_app
from deployments.cluster.render import SERVE_CONFIG
from tests.certificates import Authority
from tests.integration.conftest import FAKES, ROOT
from tests.pictures import encoded_image

BIN = Path(sys.executable).parent
_READY_S = 120.0


@pytest.fixture
def cluster(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The dashboard's address of a Ray of its own, as `ray start --head` makes it."""
    dashboard = free_port()
    folder = tmp_path_factory.mktemp("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.delenv("REDIS_URL", raising=False)
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=8", f"--port={free_port()}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--disable-usage-stats",
        "--object-store-memory=200000000", f"--temp-dir={folder}",
    ]  # fmt: skip
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        process_session.kill(head.pid)
        head.wait()


def without_gpus(
    config: dict[str, Any], *, model: Path, port: int, tls: dict[str, str], keys: Path
) -> dict[str, Any]:
    """The same for this machine: no GPU, stand-ins for the models, a certificate of our own."""
    (application,) = config["applications"]
    application["args"] |= {
        "model": str(model),
        "device": "cpu",
        "compiled": False,
        "stages": asdict(FAKES),
    }
    application["args"]["server"] |= {"host": "127.0.0.1", "port": port, "tls": tls}
    application["args"]["access"]["api_keys"] = str(keys)
    application["args"]["observe"] |= {"metrics_host": "127.0.0.1", "metrics_port": 0}
    for deployment in application["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0.1, "num_gpus": 0}
        # One node has one front end.
        deployment["autoscaling_config"]["min_replicas"] = 1
    return config


async def test_it_deploys_and_answers_over_tls(
    cluster: str, empty_model: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    own = authority.sign("service")
    keys = tmp_path / "keys.yaml"
    made = CliRunner().invoke(build_app(), ["key", "acme", "--keys", str(keys)])
    port = free_port()
    written = tmp_path / "serve_config.yaml"
    config = without_gpus(
        yaml.safe_load(SERVE_CONFIG.read_text()),
        model=empty_model,
        port=port,
        tls={"certificate_chain": str(own.chain), "private_key": str(own.key)},
        keys=keys,
    )
    written.write_text(yaml.safe_dump(config))
    deploy(written, cluster)
    tls = TlsOptions(authority.path)
    async with VisionAgentClient(f"127.0.0.1:{port}", tls=tls, token=made.stdout.strip()) as client:
        await client.wait_until_ready(_READY_S)
        assert (await client.ground(encoded_image(1), ["dog"]))["dog"].detections


def deploy(config: Path, dashboard: str) -> None:
    """`serve deploy`, tried again while the cluster is starting."""
    command = [str(BIN / "serve"), "deploy", str(config), "--address", dashboard]
    for _ in range(30):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode == 0:
            return
    raise AssertionError(done.stdout + done.stderr)
