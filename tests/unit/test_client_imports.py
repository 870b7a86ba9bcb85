"""What an import may not pull in, each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "ray"}
CLIENT = [
    "client.vision_agent_client",
    "client.watch",
    "client.demo",
    "client.annotated_video",
    "client.exporters",
    "client.rerun_recording",
]
STREAMING = [
    "agent.streaming.follower",
    "agent.streaming.snapshot",
    "agent.streaming.session_store",
    "agent.streaming.video_source",
    "agent.region_cache",
    "agent.settings",
    "agent.drawing",
    "agent.pipeline",
]


def imported_by(module: str) -> set[str]:
    """Top-level packages that are loaded after importing `module`."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", CLIENT)
def test_the_client_pulls_in_neither_models_nor_ray(module: str) -> None:
    assert not imported_by(module) & (HEAVY | {"deployments"})


@pytest.mark.parametrize("module", STREAMING)
def test_streaming_pulls_in_neither_models_nor_transport(module: str) -> None:
    assert not imported_by(module) & (HEAVY | {"grpc", "google", "deployments", "client"})


def test_the_command_line_pulls_in_nothing_heavy() -> None:
    code = (
        "import sys, deployments.cli as cli; cli.build_app();"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & (HEAVY | {"grpc", "cv2", "av"})


def test_the_process_that_watches_the_service_knows_no_ray() -> None:
    assert not imported_by("deployments.local.supervisor") & (HEAVY | {"grpc"})
