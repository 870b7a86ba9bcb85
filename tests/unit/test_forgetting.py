"""What a model knew before it learned to point, against what it knows."""

from __future__ import annotations

import pytest

from agent.evaluation.forgetting import Knowledge, compare
from groundstream.errors import SettingsError
from tests.unit.pocket_folder import pocket_weights, write_pocket_folder

SHORT = Knowledge(
    "The ferry left the harbour a little after six, and nobody spoke.",
    (("The capital of France is", (" Paris", " Rome")), ("Bees make", (" honey", " wine"))),
    ("What is the capital of France?",),
)


def test_nothing_added_is_nothing_forgotten_and_noise_forgets(tmp_path):
    for strength, name in ((0.0, "same"), (3.0, "noisy")):
        (tmp_path / name).mkdir()
        write_pocket_folder(tmp_path / name, strength=strength)
        pocket_weights(tmp_path / name)
    same = compare(str(tmp_path / "same"), SHORT)
    assert same["after"].perplexity == pytest.approx(same["before"].perplexity, rel=1e-4)
    assert same["before"].choices_right == 1.0
    assert "Paris" in same["before"].answers[0]
    noisy = compare(str(tmp_path / "noisy"), SHORT)
    assert noisy["before"].perplexity == pytest.approx(same["before"].perplexity, rel=1e-4)
    assert noisy["after"].perplexity > 2 * noisy["before"].perplexity


def test_the_shipped_questions_are_readable():
    shipped = Knowledge.read()
    assert len(shipped.choices) >= 20
    assert all(len(ends) == 4 for _, ends in shipped.choices)
    assert len(shipped.text.split()) > 400


def test_a_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("text: hello")
    with pytest.raises(SettingsError, match="no YAML with text, choices and questions"):
        Knowledge.read(path)
