"""What an import may not pull in, each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "ray"}
CLIENT = [
    "groundstream.aio",
    "groundstream.video.playback",
    "groundstream.video.annotated_video",
    "groundstream.exporters",
    "groundstream.video.detection_bag",
    "groundstream.video.rerun_recording",
    "groundstream.cameras.runner",
]
STREAMING = [
    "agent.streaming.follower",
    "agent.streaming.snapshot",
    "agent.streaming.session_store",
    "groundstream.video.sources",
    "agent.region_cache",
    "agent.settings",
    "groundstream.video.drawing",
    "agent.pipeline",
]


def imported_by(module: str) -> set[str]:
    """Top-level packages that are loaded after importing `module`."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", CLIENT)
def test_the_client_pulls_in_neither_models_nor_ray(module: str) -> None:
    assert not imported_by(module) & (HEAVY | {"agent", "deployments", "cv2"})


@pytest.mark.parametrize("module", STREAMING)
def test_streaming_pulls_in_neither_models_nor_transport(module: str) -> None:
    assert not imported_by(module) & (HEAVY | {"grpc", "google", "deployments"})


@pytest.mark.parametrize("module", ["deployments.local.watch", "deployments.demo.run"])
def test_what_uses_the_client_here_pulls_in_neither_models_nor_ray(module: str) -> None:
    assert not imported_by(module) & HEAVY


def test_the_base_needs_grpc_and_protobuf_alone() -> None:
    # grpc itself imports those of its sister packages that are there.
    grpc = {"grpc", "grpc_health", "grpc_reflection", "grpc_tools", "typing_extensions"}
    code = (
        "import sys; before = set(sys.modules);"
        "import groundstream.aio, groundstream.exporters, groundstream.health;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if "cython" not in name}
    assert loaded - sys.stdlib_module_names - grpc == {"groundstream", "google"}


def test_the_command_line_pulls_in_nothing_heavy() -> None:
    code = (
        "import sys, deployments.cli as cli; cli.build_app();"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & (HEAVY | {"grpc", "cv2", "av"})


def test_the_process_that_watches_the_service_knows_no_ray() -> None:
    assert not imported_by("deployments.local.supervisor") & (HEAVY | {"grpc"})


def test_the_embedded_models_eyes_pull_in_no_transformers() -> None:
    """Importing it takes a replica seconds, and 150 MB of memory."""
    code = (
        "import sys;"
        "from agent.encoders import PrimaryEncoderStage; from agent.proposer import Proposer;"
        "Proposer.from_pretrained('pocket'); PrimaryEncoderStage.from_pretrained('pocket');"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"transformers", "scipy"}


def test_the_process_that_starts_the_replicas_pulls_in_no_models() -> None:
    """No replica starts before it has read its own code."""
    assert not imported_by("deployments.local.ray_cluster") & {"torch", "transformers"}
