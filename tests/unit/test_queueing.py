"""The queueing laws against values from the literature and against a simulation."""

from __future__ import annotations

import heapq
import math
import random

import pytest

from benchmarks.capacity import PROFILES, Aims, Workload, needed
from benchmarks.queueing import Machine, erlang_c, mean_wait_s, most_throughput, servers_for


@pytest.mark.parametrize(
    ("servers", "load", "waits"), [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (10, 8.0, 0.409), (3, 5.0, 1.0)]
)
def test_erlangs_formula(servers: int, load: float, waits: float) -> None:
    assert erlang_c(servers, load) == pytest.approx(waits, abs=1e-3)


@pytest.mark.parametrize(("servers", "variation"), [(1, 0.0), (1, 1.0), (3, 0.0), (3, 1.0)])
def test_waits_are_those_of_a_simulated_line(servers: int, variation: float) -> None:
    chance, service_s, rate = random.Random(1), 0.1, 0.7 * servers / 0.1
    free_s = [0.0] * servers
    now_s, waited_s, num = 0.0, 0.0, 100_000
    for _ in range(num):
        now_s += chance.expovariate(rate)
        started_s = max(now_s, heapq.heappop(free_s))
        waited_s += started_s - now_s
        took_s = service_s if variation == 0.0 else chance.expovariate(1 / service_s)
        heapq.heappush(free_s, started_s + took_s)
    assert mean_wait_s(servers, rate, service_s, variation) == pytest.approx(
        waited_s / num, rel=0.12
    )


def test_a_line_that_cannot_be_served_never_ends() -> None:
    assert mean_wait_s(2, 21.0, 0.1, 1.0) == math.inf


def test_as_many_servers_as_needed_and_no_more() -> None:
    chosen = servers_for(100.0, 0.05, variation=0.3, wait_s=0.01, most_busy=0.9)
    assert mean_wait_s(chosen, 100.0, 0.05, 0.3) <= 0.01
    assert mean_wait_s(chosen - 1, 100.0, 0.05, 0.3) > 0.01 or 100.0 * 0.05 / (chosen - 1) > 0.9


def test_the_narrowest_place_decides() -> None:
    machine = Machine(cores=2.0, cpu_s_per_frame=0.01, front_end_s_per_frame=0.002)
    times = {"a": 0.02, "b": 0.01}
    assert most_throughput({"a": 1, "b": 1}, times, machine) == pytest.approx(50.0)
    assert most_throughput({"a": 2, "b": 1}, times, machine) == pytest.approx(100.0)
    assert most_throughput({"a": 9, "b": 9}, times, machine) == pytest.approx(200.0)
    busy = Machine(cores=2.0, cpu_s_per_frame=0.01, front_end_s_per_frame=0.008)
    assert most_throughput({"a": 9, "b": 9}, times, busy) == pytest.approx(125.0)


def test_ten_times_the_streams_need_somewhat_less_than_ten_times_the_replicas() -> None:
    small, large = (
        needed(streams, Workload(), PROFILES["gpu_3b"], Aims()) for streams in (100, 1_000)
    )
    assert 7.0 < large["primary_encoder"] / small["primary_encoder"] <= 10.0
    assert large["cameras_in_mbit_s"] == 10 * small["cameras_in_mbit_s"] == 4800
