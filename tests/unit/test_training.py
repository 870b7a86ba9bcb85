"""Training parts: isolated questions, and expressions that single out one thing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent.model.language_model import LanguageModel
from agent.model.positions import SlotType
from agent.sequence import SequenceBuilder
from agent.training.mixture import yes_no_turns
from agent.training.packing import PackedScene, collate_packed
from agent.training.referring import refer_to
from tests.unit.tiny_families import FAMILIES, family_config
from tests.unit.tiny_model import NAMES, tiny_tokenizer

BOXES = np.array(
    [[0.0, 0.4, 0.2, 0.6], [0.5, 0.0, 0.6, 0.1], [0.4, 0.7, 0.6, 0.9], [0.7, 0.35, 1.0, 0.65]],
    dtype=np.float32,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_questions_equal_questions_asked_alone(family):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = family_config(family, tokenizer.vocab_size)
    language = LanguageModel(
        config.language_family.decoder, config.text, tie_word_embeddings=True
    ).eval()
    builder = SequenceBuilder(tokenizer, config.language_family)
    turns = yes_no_turns(["dog", None, "cat", "dog"], NAMES, 4, np.random.default_rng(1))

    def logits(of_turns):
        batch = collate_packed([PackedScene.questions(builder, 4, of_turns, (2, 3))])
        torch.manual_seed(7)
        slots = torch.randn(1, 64, config.text.hidden_size)
        embeddings = language.embed(batch.ids)
        filled = (batch.slots != SlotType.TEXT)[..., None]
        # The same vectors in the same slots, whatever follows the prefix.
        embeddings = embeddings.masked_scatter(filled, slots)
        hidden = language(embeddings, batch.positions, attention_mask=batch.mask)
        return language.logits(hidden)[0], batch

    with torch.inference_mode():
        together, packed = logits(turns)
        for number, turn in enumerate(turns):
            alone, single = logits([turn])
            wanted = single.labels[0] != -100
            count = int(wanted.sum())
            answered = torch.nonzero(packed.labels[0] != -100).flatten()
            start = sum(int((logits([t])[1].labels != -100).sum()) for t in turns[:number])
            rows = answered[start : start + count] - 1
            expected = alone[torch.nonzero(wanted).flatten() - 1]
            torch.testing.assert_close(together[rows], expected, atol=1e-4, rtol=1e-4)


def test_expressions_single_out_the_right_one():
    rng = np.random.default_rng(0)
    meant = dict(refer_to("dog", [0, 3], BOXES, rng) or ("", -1) for _ in range(100))
    assert meant.pop("") == -1, "heights that hardly differ are not asked about"
    assert meant == {
        "dog on the left": 0,
        "dog on the right": 3,
        "largest dog": 3,
        "smallest dog": 0,
    }
