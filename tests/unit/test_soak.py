"""What a soak takes for an unhandled exception in the service's logs, and what for a leak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak import Growth, unhandled_in

_HEAD = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\n'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("all is well\n", []),
        # Typed: the client was told.
        (f"{_HEAD}groundstream.errors.InvalidFrame: damaged\n", []),
        # As Serve writes it, with a cause.
        (
            "('Traceback (most recent call last):\\n',)('  File \"a.py\"\\n',)('OSError: cut\\n',)"
            "('\\nThe above exception was the direct cause of the following exception:\\n\\n',)"
            "('Traceback (most recent call last):\\n',)('  File \"a.py\"\\n',)"
            "('groundstream.errors.InvalidFrame: damaged\\n',)",
            [],
        ),
        # Replicas that the soak kills.
        (f"{_HEAD}ray.exceptions.ActorDiedError: The actor died\nIts details: a\n", []),
        (f"{_HEAD}KeyError: 'k'\n", ["KeyError: 'k'"]),
        (
            f"INFO one\n{_HEAD}groundstream.errors.Overloaded: no\nINFO two\n"
            f"{_HEAD}ValueError: v\n",
            ["ValueError: v"],
        ),
        (
            f"{_HEAD}KeyError: 'k'\n\nDuring handling of the above exception, another exception "
            f"occurred:\n\n{_HEAD}RuntimeError: r\n",
            ["RuntimeError: r"],
        ),
        ("Task exception was never retrieved\n", ["exception was never retrieved "]),
    ],
)
def test_what_counts(tmp_path: Path, text: str, found: list[str]) -> None:
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "replica.log").write_text(text)
    (tmp_path / "dashboard_agent.log").write_text(f"{_HEAD}KeyError: of Ray's own housekeeping\n")
    assert unhandled_in(tmp_path) == [f"replica.log: {one}" for one in found]


@pytest.mark.parametrize("leak", [0.0, 2.0])
def test_growth_is_told_from_messages_that_come_and_go(leak: float) -> None:
    """MB a minute, under large messages that are there for a while, a third of the time."""
    rng = np.random.default_rng(0)
    growth = Growth(names={7: "Ingress"})
    starting = [(float(at), 100.0 + at) for at in range(0, 300, 5)]
    growth.series[7] = starting + [
        (300.0 + at, 400.0 + leak * at / 60.0 + 80.0 * float(rng.random() < 0.33))
        for at in range(0, 900, 5)
    ]
    ((name, (slope, seconds)),) = growth.slopes(0.0).items()
    assert name == "Ingress 7"
    assert slope == pytest.approx(leak, abs=0.05)
    assert seconds > 800.0


def test_a_process_that_lived_too_short_is_not_judged() -> None:
    growth = Growth(names={7: "Ingress"}, series={7: [(float(at), 100.0) for at in range(200)]})
    assert growth.slopes(0.0) == {}
    assert growth.by_minute(0.0) == {"Ingress 7": [100, 100, 100, 100]}
