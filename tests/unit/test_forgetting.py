"""What a model knew before it learned to point, against what it knows."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from agent.evaluation.forgetting import Knowledge, compare
from agent.model.smollm2 import smollm2_tokenizer
from agent.training.base_model import load_smollm2
from groundstream.errors import SettingsError
from tests.unit.pocket_folder import pocket_weights, write_pocket_folder

SHORT = Knowledge(
    "The ferry left the harbour a little after six, and nobody spoke.",
    (("The capital of France is", (" Paris", " Rome")), ("Bees make", (" honey", " wine"))),
    ("What is the capital of France?",),
)


def test_nothing_added_is_nothing_forgotten(tmp_path):
    state = write_pocket_folder(tmp_path, strength=0.0)
    pocket_weights(tmp_path)
    state["new_tokens.weight"] *= 0  # so that new tokens take next to nothing from words
    save_file(state, tmp_path / "language.safetensors")
    found = compare(str(tmp_path), SHORT)
    assert found["after"].perplexity == pytest.approx(found["before"].perplexity, rel=2e-3)
    assert found["before"].choices_right == found["after"].choices_right == 1.0
    assert "Paris" in found["before"].answers[0]


def test_noise_forgets_and_before_is_the_base_alone_whatever_the_new_tokens_are_worth(tmp_path):
    state = write_pocket_folder(tmp_path, strength=3.0)
    pocket_weights(tmp_path)
    # As after a training without text: new tokens take the probability that words had.
    state["new_tokens.weight"] *= 100
    save_file(state, tmp_path / "language.safetensors")
    found = compare(str(tmp_path), SHORT)
    ids = torch.tensor(smollm2_tokenizer().encode(SHORT.text).ids)
    with torch.inference_mode():
        logits = load_smollm2()(ids[None]).logits[0, :-1]
    published = torch.nn.functional.cross_entropy(logits, ids[1:]).exp()
    assert found["before"].perplexity == pytest.approx(float(published), rel=1e-4)
    assert "Paris" in found["before"].answers[0]
    assert found["after"].perplexity > 2 * found["before"].perplexity


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
