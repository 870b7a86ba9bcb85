"""`groundstream serve` with fake stages as a process, whose files are all in one folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from deployments.local.service_process import free_port
from tests.integration.conftest import ROOT, write_fake_config
from tests.waiting import until

_READY_S = 120.0
_GONE_S = 30.0


@dataclass(frozen=True)
class ServingProcess:
    """The command while it runs."""

    process: subprocess.Popen[bytes]
    target: str
    output: Path
    """What it has printed."""
    temporary: Path
    """What its processes have for temporary files."""

    def wait_until_it_says(self, wanted: str) -> None:
        """Returns once that was printed; fails where the command ends first."""
        until(
            lambda: wanted in self.output.read_text() or self.process.poll() is not None,
            _READY_S,
            pause_s=0.1,
        )
        assert wanted in self.output.read_text()

    def end(self, number: signal.Signals) -> None:
        """Send it a signal; fails where a process, a file or a traceback is left."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        assert family
        self.process.send_signal(number)
        self.process.wait(_GONE_S)
        _, alive = psutil.wait_procs(family, timeout=_GONE_S)
        assert not alive, [psutil.Process(p.pid).cmdline() for p in alive]
        until(lambda: not list(self.temporary.iterdir()), _GONE_S, pause_s=0.1)
        assert "Traceback" not in self.output.read_text()


@contextlib.contextmanager
def serving_process(model: Path, folder: Path, *options: str | Path) -> Iterator[ServingProcess]:
    """The command with more of its options, begun; killed at the end, if it is still there."""
    temporary = Path(tempfile.mkdtemp(prefix="gs-", dir="/tmp"))  # Ray's sockets need a short path.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(temporary)}
    environment.pop("REDIS_URL", None)
    # PyTorch's compiled code outlives a service, so that the next one starts sooner.
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    output, config = folder / "output.txt", str(write_fake_config(model, folder))
    command = [sys.executable, "-m", "deployments.cli", "serve", "--config", config]
    command += ["--host", "127.0.0.1", "--port", str(port := free_port()), *map(str, options)]
    with output.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        yield ServingProcess(process, f"127.0.0.1:{port}", output, temporary)
    finally:
        process.kill()
        process.wait()
        for left in temporary.iterdir():
            left.rename(folder / left.name)
        temporary.rmdir()
