"""The camera runner in a process of its own, videos in which light comes and goes, and a service
that sees the light."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import AbstractAsyncContextManager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from agent.features import FrameFeatures, Generation
from agent.pipeline import Grounder, Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from deployments.observability.metrics import ServiceMetrics
from tests.fakes import FakeLanguage, FakeStages, _generation
from tests.in_process import Service, running_service
from tests.receivers import Record

ROOT = Path(__file__).parents[1]
_DARK = 0.25
FPS = 10


class _Light(FakeLanguage):
    """Finds box 0 where there is light, and nothing in the dark."""

    def _generation(self, features: FrameFeatures | None, task: Task) -> Generation:
        if features is not None and float(features.primary_regions.mean()) < _DARK:
            return _generation("<ground>", task.query, "</ground>", "<objects>", "</objects>")
        return super()._generation(features, task)


class _LightStages(FakeStages):
    def __init__(self) -> None:
        super().__init__()
        self._language = _Light()


def light_service(port: int) -> AbstractAsyncContextManager[Service]:
    """A service at a fixed port."""

    def grounder(_metrics: ServiceMetrics) -> Grounder:
        return Pipeline(_LightStages(), MemoryRegionCache(), model_digest="m")

    return running_service(port=port, grounder=grounder)


def write_light(path: Path, *, seed: int, seconds: float = 6.0, on_s: float = 3.0) -> Path:
    """A noisy picture that is bright for so long, then dark until the end."""
    random = np.random.default_rng(seed)
    # The dark has a texture of its own: a tracker follows the same one whatever its brightness is.
    noise, dark = (random.integers(0, most, (96, 128, 3), np.uint8) for most in (40, 10))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(round(seconds * FPS)):
            pixels = noise + np.uint8(190) if number < on_s * FPS else dark
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


class RunnerProcess:
    """`python -m groundstream.cameras FILE`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = path.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin; what it says is added to the log."""
        environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "groundstream.cameras", str(self._path)],
                cwd=ROOT, env=environment, stderr=log, stdout=log,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text()

    @property
    def memory_mb(self) -> float:
        """Resident."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no memory")

    def kill(self) -> None:
        """As a power cut."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def end(self, limit_s: float = 60.0) -> int:
        """Ask it to end; its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(limit_s)

    def has_ended(self) -> bool:
        """Whether it is gone."""
        return self._process is not None and self._process.poll() is not None


def figures(port: int) -> dict[str, float]:
    """The metrics page, by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
        lines = page.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def lines(path: Path) -> list[Record]:
    """Records of a JSON lines file, whole ones."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().split(b"\n"):
        if line:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # A killed process left half of it; the record comes again.
    return found


def of_what(records: list[Record], what: str, since_ns: int = 0) -> list[Record]:
    """Records about cameras or the runner that say this."""
    return [
        record for record in records if record.get("what") == what and record["time_ns"] >= since_ns
    ]


def events_of(records: list[Record], since_ns: int = 0) -> dict[str, list[Record]]:
    """Events by camera."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["type"] == "event" and record["time_ns"] >= since_ns:
            found.setdefault(record["camera"], []).append(record)
    return found


def check_numbers(records: list[Record], num_lost: int = 0) -> None:
    """Nothing is missing: numbers go from 1 up without a hole, but for what is told as lost."""
    numbers = {record["number"] for record in records if record["number"]}
    told = sum(record["count"] for record in records if record["type"] == "lost")
    assert told == num_lost
    assert numbers
    assert len(numbers) == max(numbers) - told


def check_story(records: list[Record]) -> None:
    """Each event is told once: what appears was not there, unless that was taken back."""
    unique = list({record["id"]: record for record in records}.values())
    present: dict[tuple[str, str, int, int], str] = {}
    for record in sorted(unique, key=lambda record: record["number"]):
        if record["type"] == "camera" and record["what"] in ("STARTED", "STOPPED", "ENDED"):
            present = {
                thing: name for thing, name in present.items() if thing[0] != record["camera"]
            }
        if record["type"] != "event":
            continue
        event = record["event"]
        thing = (
            record["camera"],
            event["query"],
            event.get("session", 0),
            event.get("track_id", -1),
        )
        if event["kind"] == "APPEARED":
            assert thing not in present, record
            present[thing] = event["id"]
        elif event["kind"] in ("LEFT", "LOST"):
            assert present.pop(thing, None), record
        elif event["kind"] == "RETRACTED" and present.get(thing) == event["retracts"]:
            del present[thing]


def now_ns() -> int:
    """The moment."""
    return time.time_ns()
