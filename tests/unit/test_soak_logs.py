"""What a soak takes for an unhandled exception in the service's logs, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import unhandled_in

_HEAD = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\n'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("all is well\n", []),
        # Typed: the client was told.
        (f"{_HEAD}agent.errors.InvalidFrame: damaged\n", []),
        # As Serve writes it, with a cause.
        (
            "('Traceback (most recent call last):\\n',)('  File \"a.py\"\\n',)('OSError: cut\\n',)"
            "('\\nThe above exception was the direct cause of the following exception:\\n\\n',)"
            "('Traceback (most recent call last):\\n',)('  File \"a.py\"\\n',)"
            "('agent.errors.InvalidFrame: damaged\\n',)",
            [],
        ),
        # Replicas that the soak kills.
        (f"{_HEAD}ray.exceptions.ActorDiedError: The actor died\nIts details: a\n", []),
        (f"{_HEAD}KeyError: 'k'\n", ["KeyError: 'k'"]),
        (
            f"INFO one\n{_HEAD}agent.errors.Overloaded: no\nINFO two\n{_HEAD}ValueError: v\n",
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
