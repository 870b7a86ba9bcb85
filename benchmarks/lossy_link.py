"""A slow and lossy network on one machine by way of a TUN device; needs no netem in the kernel.

What is sent to the far address comes back from it to our own, late or not at all, so that a client
and a service on this machine talk over it with the kernel's TCP: it acknowledges, backs off and
sends again, as over a real link. Linux, root and a network namespace of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

NEAR, FAR = "10.77.0.1", "10.77.0.2"
"""Where the service listens, and where clients find it over the link."""
_DEVICE = "robot0"
_MTU = 1500
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_IPV4 = 4
_IDLE_S = 0.2
_MAX_WAITING = 20_000
"""Packets under way; more are dropped, as a router does whose queue is full."""


class LinkUnavailable(Exception):
    """This machine makes no such link for us; says why."""


@dataclass(frozen=True)
class Condition:
    """What happens to a packet in each direction."""

    delay_ms: float = 0.0
    loss: float = 0.0
    """Share of packets that do not arrive, each by chance."""

    def __str__(self) -> str:
        return f"{self.delay_ms:g} ms, {self.loss:.0%}"


class LossyLink:
    """The link; `condition` may be changed at any time."""

    def __init__(self, seed: int = 7) -> None:
        self.condition = Condition()
        self.num_passed = 0
        self.num_dropped = 0
        self._dice = random.Random(seed)
        self._file = _open_device()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take it down."""
        self._is_over.set()
        self._thread.join()
        os.close(self._file)

    def _carry(self) -> None:
        waiting: list[tuple[float, int, bytes]] = []
        number = 0
        while not self._is_over.is_set():
            now_s = time.monotonic()
            while waiting and waiting[0][0] <= now_s:
                packet = heapq.heappop(waiting)[2]
                with contextlib.suppress(OSError):
                    os.write(self._file, packet)
            pause_s = min(_IDLE_S, waiting[0][0] - now_s) if waiting else _IDLE_S
            if not select.select([self._file], [], [], max(0.0, pause_s))[0]:
                continue
            with contextlib.suppress(BlockingIOError):
                while len(packet := os.read(self._file, _MTU + 100)) >= 20:
                    if packet[0] >> 4 != _IPV4:
                        continue
                    condition = self.condition
                    if self._dice.random() < condition.loss or len(waiting) >= _MAX_WAITING:
                        self.num_dropped += 1
                        continue
                    self.num_passed += 1
                    number += 1
                    due_s = time.monotonic() + condition.delay_ms / 1e3
                    # Both addresses are in every checksum, whose sum knows no order.
                    turned = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                    heapq.heappush(waiting, (due_s, number, turned))


@contextlib.contextmanager
def lossy_link() -> Iterator[LossyLink]:
    """Made, and taken down.

    Raises:
        LinkUnavailable: no TUN device can be made here.
    """
    link = LossyLink()
    try:
        yield link
    finally:
        link.close()


def _open_device() -> int:
    try:
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        try:
            wanted = struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN_NO_PI)
            fcntl.ioctl(file, _TUNSETIFF, wanted)
            for command in (
                ["address", "add", f"{NEAR}/24", "dev", _DEVICE],
                ["link", "set", _DEVICE, "mtu", str(_MTU), "up"],
            ):
                subprocess.run(["ip", *command], check=True, capture_output=True)
        except BaseException:
            os.close(file)
            raise
    except (OSError, subprocess.CalledProcessError) as error:
        raise LinkUnavailable(
            f"no TUN device can be made ({error}); it takes Linux, root and iproute2"
        ) from error
    return file
