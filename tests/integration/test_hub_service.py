"""From an empty home to an answer in one command; real processes, a hub on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.chosen_model import DEFAULT_NETWORK
from deployments.local.service_process import free_port
from groundstream import aio
from tests.fake_hub import fake_hub
from tests.pictures import encoded_image
from tests.unit.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]
OMDET = ROOT / "tests" / "golden" / "omdet"
REPO = "omlab/VLM-FO1-3B-v01"
_READY_S = 200.0


@contextmanager
def serving(home: Path, hub: str, *options: str) -> Iterator[tuple[str, Path]]:
    """The service as a user starts it, when it is ready: its address and what it said."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HOME": str(home),
        "HF_ENDPOINT": hub,
    }
    for name in ("REDIS_URL", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        environment.pop(name, None)
    port, output = free_port(), home / "output.txt"
    command = [sys.executable, "-m", "deployments.cli", "serve", "--port", str(port), *options]
    with output.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        deadline_s = time.monotonic() + _READY_S
        while "ready on" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline_s, output.read_text()
            time.sleep(0.2)
        yield f"127.0.0.1:{port}", output
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()


@pytest.mark.skipif("HUB" not in os.environ, reason="takes minutes; HUB=1 runs it")
@pytest.mark.timeout(600)
async def test_one_command(tmp_path: Path) -> None:
    published = write_tiny_model(tmp_path / "published")
    shutil.rmtree(published / "proposal")
    home = tmp_path / "home"
    home.mkdir()
    with fake_hub() as hub:
        hub.add_folder(REPO, published)
        hub.add_folder(DEFAULT_NETWORK, OMDET)
        with serving(home, hub.url, "--model", REPO, "--max-new-tokens", "8") as (target, output):
            async with aio.Client(target) as client:
                answer = await client.ground(encoded_image(), ["dog"])
                about = await client.capabilities()
        assert answer.results
        assert about.model_name == REPO
        assert about.max_new_tokens == 8
        assert DEFAULT_NETWORK in output.read_text()
        num_asked = len(hub.requests)
        # A model that is here needs no hub, and one without proposals gets ready too.
        options = ("--model", REPO, "--proposals", "none", "--max-new-tokens", "8")
        with serving(home, hub.url, *options) as (target, output):
            async with aio.Client(target) as client:
                boxes = [(1.0, 2.0, 30.0, 40.0)]
                answer = await client.ground(encoded_image(), ["dog"], boxes=boxes)
        assert answer.results
        assert "every request must bring boxes" in output.read_text()
        assert len(hub.requests) == num_asked
