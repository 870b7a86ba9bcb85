"""The client alone in an environment, with the oldest and with the newest protobuf."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.in_process import running_service
from tests.integration.conftest import ROOT

USE = """
import sys, google.protobuf, groundstream
from pathlib import Path
from groundstream import Client
from groundstream.events import StreamStats
from groundstream.types import OutgoingFrame
assert Path(groundstream.__file__).is_relative_to(sys.argv[3]), groundstream.__file__
picture = Path(sys.argv[2]).read_bytes()
with Client(sys.argv[1]) as client:
    client.wait_until_ready(60.0)
    answer = client.ground(picture, ["dog"])["dog"]
    frames = (OutgoingFrame(picture, number) for number in range(5))
    with client.watch(frames, ["dog"]) as stream:
        books = [event for event in stream if isinstance(event, StreamStats)][-1]
heavy = {"numpy", "torch", "ray", "PIL", "av", "cv2"} & set(sys.modules)
print(google.protobuf.__version__, answer.status.name, len(answer.detections) > 0, books.balanced,
      books.received, sorted(heavy))
"""
OLDEST = ("protobuf==4.25.0", "grpcio==1.60.0")
_MOST_BYTES = 25_000_000


def build(folder: Path) -> Path:
    """The wheel, from a copy: building leaves folders behind."""
    shutil.copytree(ROOT / "client", folder / "client", ignore=shutil.ignore_patterns("*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--wheel-dir", str(folder), str(folder / "client")], check=True, timeout=240
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def used_with(python: Path, site: Path, target: str, folder: Path, **more: str) -> list[str]:
    """What `USE` prints, run from an empty folder."""
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | more
    done = subprocess.run(
        [str(python), "-W", "error", "-c", USE, target, str(ROOT / "tests/assets/cat.jpg"),
         str(site)],
        cwd=empty, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split(maxsplit=1)


async def test_the_wheel_alone_asks_a_service(tmp_path: Path) -> None:
    wheel, site = await asyncio.to_thread(build, tmp_path), tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(wheel)], check=True, timeout=120)
    async with running_service() as service:
        _, said = await asyncio.to_thread(
            used_with, Path(sys.executable), site, service.target, tmp_path, PYTHONPATH=str(site)
        )
    assert said == "OK True True 5 []\n"


@pytest.mark.slow
@pytest.mark.skipif("WHEEL" not in os.environ, reason="installs from PyPI; WHEEL=1")
@pytest.mark.parametrize("requirements", [OLDEST, ()], ids=["oldest", "newest"])
def test_a_bare_environment_asks_a_real_service(
    requirements: tuple[str, ...], service: str, tmp_path: Path
) -> None:
    wheel = build(tmp_path)
    interpreter = shutil.which("python3.10") or sys.executable
    if subprocess.run([interpreter, "-V"], capture_output=True).returncode:
        interpreter = sys.executable  # A shim of pyenv for a version that is not chosen here.
    environment = tmp_path / "environment"
    subprocess.run([interpreter, "-m", "venv", str(environment)], check=True, timeout=240)
    python = environment / "bin" / "python"
    (site,) = (environment / "lib").glob("python*/site-packages")
    before = size_of(site)
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", str(wheel), *requirements],
        check=True, timeout=500, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    added = size_of(site) - before
    version, said = used_with(python, site, service, tmp_path)
    assert version.startswith("4.25.") == bool(requirements)
    assert said == "OK True True 5 []\n"
    print(f"{interpreter}: protobuf {version}, {added / 1e6:.1f} MB installed")
    assert added < _MOST_BYTES
    pure = used_with(
        python, site, service, tmp_path, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python"
    )
    assert pure == [version, said]


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
