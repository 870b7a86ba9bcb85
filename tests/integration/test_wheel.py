"""Both wheels by themselves: built, unpacked beside the environment, run from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from deployments.local.service_process import free_port
from tests.integration.conftest import ROOT

VERSION = "0.2.0"
NEEDED = {
    "agent/py.typed",
    "agent/weights/pocket/config.json",
    "agent/weights/pocket/language.safetensors",
    "agent/evaluation/general_knowledge.yaml",
    "deployments/py.typed",
    "deployments/demo/data/pedestrians.mp4",
    "deployments/demo/data/pedestrians.json",
    "deployments/demo/data/bikes.json",
    "deployments/serve_config.yaml",
    "deployments/cluster/serve_config.yaml",
    "deployments/observability/alerts.yaml",
    "deployments/console/static/index.html",
}
NEEDED_BY_CLIENTS = {
    "groundstream/__init__.py",
    "groundstream/py.typed",
    "groundstream/protos/vision_agent_pb2.py",
    "groundstream/protos/vision_agent_pb2.pyi",
    "groundstream/protos/vision_agent_pb2_grpc.py",
    "groundstream/video/sources.py",
}
_READY_S = 240.0


@dataclass(frozen=True)
class Installed:
    """The contents of both wheels in a folder of their own."""

    wheel: Path
    client_wheel: Path
    site: Path
    empty: Path

    def environment(self) -> dict[str, str]:
        """In which its packages come before the checkout's."""
        return {**os.environ, "PYTHONPATH": str(self.site)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Its own `groundstream`, in the empty folder."""
        return subprocess.run(
            [sys.executable, str(self.site / "bin" / "groundstream"), *arguments],
            cwd=self.empty, env=self.environment(), capture_output=True, text=True, timeout=120,
        )  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: building leaves folders behind.
    listed = subprocess.run(
        ["git", "ls-files", "agent", "client", "deployments", "pyproject.toml", "README.md",
         "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.split("\n"):
        if (ROOT / name).is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    source = folder / "source"
    subprocess.run([*build, str(source), str(source / "client")], check=True, timeout=240)
    (wheel,), (client_wheel,) = (
        list(folder.glob(f"{name}-*.whl")) for name in ("groundstream", "groundstream_client")
    )
    site, empty = folder / "site", folder / "empty"
    empty.mkdir()
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel),
         str(client_wheel)],
        check=True, timeout=120,
    )  # fmt: skip
    return Installed(wheel, client_wheel, site, empty)


def test_the_wheels_hold_what_the_commands_read(installed: Installed) -> None:
    assert installed.wheel.name == f"groundstream-{VERSION}-py3-none-any.whl"
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    assert names >= NEEDED
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))]
    tracked = {
        str(path.relative_to(installed.site.parent / "source"))
        for package in ("agent", "deployments")
        for path in (installed.site.parent / "source" / package).rglob("*")
        if path.is_file()
    }
    # Of a build in the same folder, which setuptools leaves beside the packages.
    assert {name for name in tracked if "build/" not in name and "egg-info" not in name} <= names


def test_the_clients_wheel_is_small_and_holds_one_package(installed: Installed) -> None:
    assert installed.client_wheel.name == f"groundstream_client-{VERSION}-py3-none-any.whl"
    names = set(zipfile.ZipFile(installed.client_wheel).namelist())
    assert names >= NEEDED_BY_CLIENTS
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"groundstream", f"groundstream_client-{VERSION}.dist-info"}
    assert installed.client_wheel.stat().st_size < 200_000


def test_its_commands_run_from_an_empty_folder(installed: Installed) -> None:
    where = subprocess.run(
        [
            sys.executable,
            "-c",
            "import groundstream, deployments; print(groundstream.__file__, deployments.__file__)",
        ],
        cwd=installed.empty,
        env=installed.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    for path in where.stdout.split():
        assert Path(path).is_relative_to(installed.site)
    assert installed.run("--version").stdout == f"groundstream {VERSION}\n"
    lines = {line[6:17].strip(): line for line in installed.run("doctor").stdout.splitlines()}
    for subject in ("python", "packages", "settings", "model"):
        assert lines[subject].startswith("ok"), lines
    assert str(installed.site) in lines["settings"]
    assert str(installed.site) in lines["model"]
    assert list(installed.empty.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif("WHEEL" not in os.environ, reason="takes a minute; WHEEL=1")
def test_it_serves(installed: Installed, tmp_path: Path) -> None:
    shipped = yaml.safe_load((installed.site / "deployments" / "serve_config.yaml").read_text())
    shipped["applications"][0]["args"]["observe"]["metrics_port"] = None
    config, target = tmp_path / "serve.yaml", f"127.0.0.1:{free_port()}"
    config.write_text(yaml.safe_dump(shipped))
    port = target.split(":")[1]
    options = ["--stop-with-parent", "--config", str(config), "--port", port]
    program = [sys.executable, str(installed.site / "bin" / "groundstream")]
    service = subprocess.Popen(
        [*program, "serve", *options], cwd=installed.empty, env=installed.environment()
    )
    try:
        deadline_s = time.monotonic() + _READY_S
        while installed.run("health", target).returncode != 0:
            assert service.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(1.0)
    finally:
        service.terminate()
        service.wait(60)
    assert service.returncode == 0
