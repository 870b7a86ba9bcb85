"""The link of `benchmarks.robot_network`, in a network namespace of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.lossy_link import FAR, NEAR, Condition, LinkUnavailable, lossy_link

_CONTENT = bytes(range(256)) * 400
_CONDITIONS = (Condition(), Condition(30.0), Condition(5.0, 0.05))


def _main() -> None:
    """Sends over the link and back, and says what it saw; run by the test below."""
    with lossy_link() as link, socket.create_server((NEAR, 0)) as server:

        def echo() -> None:
            connection, _ = server.accept()
            with connection:
                while received := connection.recv(65_536):
                    connection.sendall(received)

        seen = []
        for link.condition in _CONDITIONS:
            dropped = link.num_dropped
            threading.Thread(target=echo, daemon=True).start()
            started_s = time.monotonic()
            with socket.create_connection((FAR, server.getsockname()[1])) as connection:
                opened_s = time.monotonic() - started_s
                sending = threading.Thread(target=connection.sendall, args=(_CONTENT,))
                sending.start()
                received = b""
                while len(received) < len(_CONTENT):
                    received += connection.recv(65_536)
                sending.join()
            seen.append((opened_s, received == _CONTENT, link.num_dropped - dropped))
    print(json.dumps(seen))


def test_packets_come_late_or_not_at_all_and_tcp_mends_it() -> None:
    inside = 'ip link set lo up && exec "$@"'
    command = ["unshare", "--net", "sh", "-c", inside, "sh", sys.executable, "-m", __spec__.name]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
        )
    except OSError as error:
        pytest.skip(f"there is no unshare: {error}")
    if done.returncode and (LinkUnavailable.__name__ in done.stderr or "unshare" in done.stderr):
        pytest.skip(f"no link can be made here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (_, whole, none), (late_s, whole_late, none_late), (_, whole_lossy, num_lost) = json.loads(
        done.stdout
    )
    # A connection is open when its first packet has come back, so after twice the delay.
    assert late_s >= 0.06
    assert (whole, whole_late, whole_lossy) == (True, True, True)
    assert (none, none_late) == (0, 0)
    assert num_lost > 0


if __name__ == "__main__":
    _main()
