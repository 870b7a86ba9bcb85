"""How many replicas a number of streams needs: the laws, without any measurement in them.

Waiting by Erlang's C formula with Allen and Cunneen's correction for service times that are less
random than exponential (Allen, 1990); throughput by the bottleneck law (Denning and Buzen, 1978).
Written down in docs/capacity.md, checked by `benchmarks.scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


def erlang_c(servers: int, load: float) -> float:
    """Probability that a call has to wait.

    Args:
        servers: how many serve.
        load: arrival rate times mean service time; must be less than `servers`.
    """
    if load >= servers:
        return 1.0
    # Erlang's B by its recursion, which does not overflow.
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    busy = load / servers
    return blocked / (1.0 - busy * (1.0 - blocked))


def mean_wait_s(servers: int, rate: float, service_s: float, variation: float) -> float:
    """Mean time in the line; infinite when the servers cannot keep up.

    Args:
        servers: how many serve from one line.
        rate: calls per second, arriving at random.
        service_s: mean time of one.
        variation: squared coefficient of variation of it; 0: always the same, 1: exponential.
    """
    load = rate * service_s
    if load >= servers:
        return math.inf
    waiting_s = erlang_c(servers, load) * service_s / (servers - load)
    return waiting_s * (1.0 + variation) / 2.0


def servers_for(
    rate: float, service_s: float, *, variation: float, wait_s: float, most_busy: float
) -> int:
    """Fewest servers with a mean wait of at most `wait_s` and no more than so busy."""
    servers = max(1, math.ceil(rate * service_s / most_busy))
    while mean_wait_s(servers, rate, service_s, variation) > wait_s:
        servers += 1
    return servers


@dataclass(frozen=True)
class Machine:
    """What the stages of one machine share."""

    cores: float
    cpu_s_per_frame: float
    """Processor time that one frame costs in all processes together."""
    front_end_s_per_frame: float
    """The front end's part of it; a front-end replica has one event loop, so one processor."""


def most_throughput(
    replicas: Mapping[str, int], service_s: Mapping[str, float], machine: Machine
) -> float:
    """Frames per second that the narrowest place lets through: a stage, or the processors.

    Args:
        replicas: of each stage that serves one call at a time.
        service_s: what one call takes there with a processor of its own.
        machine: where all run.
    """
    by_stage = min(replicas[name] / service_s[name] for name in service_s)
    by_processors = machine.cores / machine.cpu_s_per_frame
    return min(by_stage, by_processors, 1.0 / machine.front_end_s_per_frame)
