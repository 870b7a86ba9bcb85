"""A start that goes on is waited for and told of; one that stands still is not."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import pytest
from ray import serve

from agent.settings import ServiceSettings
from deployments.local import ray_cluster
from deployments.local.start_progress import Effort, StartProgress, effort_of, weights_in_memory
from groundstream.errors import StageUnavailable

GIB = 1 << 30


class Start:
    """Replicas whose effort the test decides, by a clock of its own."""

    def __init__(self, weight_bytes: int | None = None) -> None:
        self.now_s, self.done, self.said = 0.0, Effort(), list[str]()
        self.progress = StartProgress(
            lambda: self.done, patience_s=60.0, report=self.said.append,
            weight_bytes=weight_bytes, clock=lambda: self.now_s,
        )  # fmt: skip

    def after(self, seconds: float, *, processor_s: float = 0.0, num_bytes: int = 0) -> None:
        """Time passes in which so much is done."""
        held = self.done.num_bytes + num_bytes
        self.done = Effort(self.done.processor_s + processor_s, (("Language", held),))
        self.now_s += seconds
        self.progress.look()


def test_a_start_may_take_as_long_as_it_computes() -> None:
    start = Start()
    for _ in range(100):
        start.after(30.0, processor_s=3.0)
    assert start.progress.left_s == 60.0


def test_loading_counts_though_it_takes_no_processor_time() -> None:
    start = Start()
    for _ in range(10):
        start.after(30.0, num_bytes=GIB // 10)
    assert start.progress.left_s == 60.0


def test_what_idle_replicas_use_is_no_progress() -> None:
    start = Start()
    for _ in range(30):
        start.after(2.0, processor_s=0.01, num_bytes=4096)
    # The first look finds replicas that were not there before.
    assert start.progress.left_s == pytest.approx(2.0, abs=2.0)
    start.after(4.0)
    assert start.progress.left_s <= 0.0


def test_how_far_it_is_is_told_every_ten_seconds() -> None:
    start = Start(weight_bytes=8 * GIB)
    for _ in range(12):
        start.after(2.0, processor_s=1.0, num_bytes=GIB // 4)
    assert len(start.said) == 2
    assert "after 20 s: 2.5 of about 8.4 GiB in memory (Language 2.5)" in start.said[1]
    assert "10 s of processor time" in start.said[1]


def test_small_models_are_not_measured() -> None:
    assert weights_in_memory(ServiceSettings(model="pocket")) is None
    assert weights_in_memory(ServiceSettings(model="pocket", device="cuda")) is None


def test_the_effort_of_replicas_is_read_from_the_system() -> None:
    burn = "import time\nwhile True: time.process_time()"
    command = ["ray::ServeReplica:groundstream:Language", "-c", burn]
    with subprocess.Popen(command, executable=sys.executable, start_new_session=True) as process:
        try:
            while effort_of(process.pid).processor_s < 0.1:
                time.sleep(0.05)
            ((name, size),) = effort_of(process.pid).memory
            assert name == "Language"
            assert size > 1 << 20
        finally:
            process.kill()


class Method:
    """Of a front end that gets no frame through: one call is late, the other says why."""

    def __init__(self, said: str | None) -> None:
        self._said = said

    def remote(self) -> Method:
        """The response."""
        return self

    def result(self, timeout_s: float) -> str:
        """At once."""
        if self._said is None:
            raise TimeoutError
        return self._said


class FrontEnd:
    """A handle to it."""

    def __init__(self, failure: str) -> None:
        self.wait_until_serving, self.start_failure = Method(None), Method(failure)


@pytest.mark.parametrize(
    ("failure", "works", "message"),
    [
        ("", False, r"not become ready in time; start it"),
        ("no such boxes", True, r"in time \(no such boxes\); start it"),
    ],
)
def test_a_start_fails_when_it_stands_still_or_no_frame_gets_through(
    monkeypatch: pytest.MonkeyPatch, failure: str, works: bool, message: str
) -> None:
    monkeypatch.setattr(serve, "get_deployment_handle", lambda *_names: FrontEnd(failure))
    start = Start()
    if works:
        start.progress._patience_s = math.inf
    else:
        start.after(61.0)
        start.after(61.0)
    with pytest.raises(StageUnavailable, match=message):
        ray_cluster._wait_until_serving(start.progress, patience_s=0.2)
