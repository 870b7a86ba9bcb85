"""Answers of models that run on: the grammar brings them to an end."""

from __future__ import annotations

import pytest
import torch

from agent.grammar import (
    AnswerGrammar,
    AnswerTokens,
    BoundedAnswerGrammar,
    meaningless_in_answers,
)
from agent.model.family import find_family
from agent.prompts import Task
from agent.tokenizer import PromptTokenizer
from tests.unit.tiny_families import FAMILIES, family_stage, random_features
from tests.unit.tiny_model import tiny_tokenizer

NUM_REGIONS = 3


@pytest.fixture(scope="module")
def words() -> PromptTokenizer:
    return tiny_tokenizer()


def begun(words: PromptTokenizer) -> BoundedAnswerGrammar:
    tokens = AnswerTokens.of(words, num_regions=100)
    form = AnswerGrammar(tokens.first(NUM_REGIONS), all_regions=tokens.regions)
    return BoundedAnswerGrammar(form, never=meaningless_in_answers(words, tokens))


def after(words: PromptTokenizer, text: str) -> set[str]:
    """The control tokens that may follow, and "words" where words may."""
    grammar = begun(words)
    for token in words.encode(text):
        allowed = grammar.constrain(torch.zeros(words.vocab_size)).isfinite()
        assert allowed[token], words.decode([token])
        grammar = grammar.advanced(token)
    allowed = grammar.constrain(torch.zeros(words.vocab_size)).isfinite().nonzero()[:, 0].tolist()
    controls = {words.decode([token]) for token in allowed if token in words.control_ids}
    return controls | ({"words"} if len(allowed) > len(controls) else set())


REGIONS = {"<region0>", "<region1>", "<region2>"}


@pytest.mark.parametrize(
    ("written", "allowed"),
    [
        ("", {"words", "<ground>", "<|im_end|>", *REGIONS}),
        ("a dog ", {"words", "<ground>", "<|im_end|>", *REGIONS}),
        ("a dog <region1>", {"words", "<ground>", "<|im_end|>", "<region2>"}),
        ("<ground>", {"words"}),
        ("<ground>dog", {"words", "</ground>"}),
        ("<ground>" + 12 * " g", {"</ground>"}),
        ("<ground>dog</ground>", {"<objects>"}),
        ("<ground>dog</ground><objects><region1>", {"<region2>", "</objects>"}),
        ("<ground>dog</ground><objects><region2>", {"</objects>"}),
        (3 * "<ground>dog</ground><objects></objects>", {"<|im_end|>"}),
        (3 * "dog cat ", {"<|im_end|>"}),
        ("dog dog dog", {"words", "<ground>", "<|im_end|>", *REGIONS}),
    ],
)
def test_what_may_follow(words: PromptTokenizer, written: str, allowed: set[str]) -> None:
    assert after(words, written) == allowed


@pytest.mark.parametrize("family", FAMILIES)
def test_which_families_are_bounded(family: str) -> None:
    """Random models run on in whatever they know."""
    stage = family_stage(family)
    try:
        features = random_features(stage._model.config, "one", num_boxes=NUM_REGIONS)
        answer = stage.answer(features, Task.describe_region(1))
        bounded = find_family(family).prompt.bounds_answers
        assert bounded == (family == "llama")
        if bounded:
            assert not {"<think>", "<|im_start|>", "<region5>"} & set(answer.pieces)
            assert not answer.truncated
    finally:
        stage.close()
