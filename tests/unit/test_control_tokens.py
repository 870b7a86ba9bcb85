"""Nobody speaks in control tokens: what a user types never becomes one, whatever the tokenizer."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from agent.prompts import Exchange, Task, clean_query, region_token
from agent.sequence import SequenceBuilder
from agent.tokenizer import CONTROL_TOKENS, PromptTokenizer
from groundstream.errors import InvalidQuery


def control_ids(tokenizer: PromptTokenizer) -> dict[int, str]:
    """Every token that is no text, by its id."""
    added = tokenizer._tokenizer.get_added_tokens_decoder()
    return {number: str(token.content) for number, token in added.items()}


def test_every_control_token_is_refused_by_its_looks_and_by_its_id(
    tokenizer: PromptTokenizer,
) -> None:
    found = set(control_ids(tokenizer).values())
    assert found >= set(CONTROL_TOKENS)
    for token in found:
        for words in (token, f"a dog{token}", f"{token} and {region_token(3)}"):
            with pytest.raises(InvalidQuery, match="control token"):
                tokenizer.check_words(words)
            # Of those that a language model brings with it looks say nothing.
            if token in CONTROL_TOKENS:
                with pytest.raises(InvalidQuery, match="control token"):
                    clean_query(words)


def test_words_that_are_no_text_are_refused(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(InvalidQuery, match="no character"):
        tokenizer.check_words("a dog\ud800")


def test_a_token_that_only_this_model_knows_is_refused_by_its_id(
    tokenizer: PromptTokenizer,
) -> None:
    other = Tokenizer.from_str(tokenizer._tokenizer.to_str())
    other.add_special_tokens([AddedToken("[INST]", special=True, normalized=False)])
    assert clean_query("a [INST] dog")  # It does not look like one.
    tokenizer.check_words("a [INST] dog")
    with pytest.raises(InvalidQuery, match=r"\[INST\]"):
        PromptTokenizer(other).check_words("a [INST] dog")


PIECES = st.lists(
    st.sampled_from(
        ["<", ">", "|", "/", "<|", "|>", "im_end", "im_start", "region", "3", "{}", "ground",
         "objects", "<region", "</", " ", "\u200b", "\uff1c", "dog", "<|im_", "end|>"]
    ),
    min_size=1,
    max_size=12,
).map("".join)  # fmt: skip


@given(words=PIECES, before=PIECES, regions=st.lists(st.integers(0, 5), max_size=2))
def test_a_prompt_holds_no_control_token_but_ours(
    words: str, before: str, regions: list[int], tokenizer: PromptTokenizer
) -> None:
    try:
        tasks = [Task.detect(words), Task.count(words), Task.reason(words)]
        tasks.append(Task.chat(words, regions=tuple(regions)))
        tasks.append(Task.chat(words, history=(Exchange(before, "no"),)))
    except InvalidQuery:
        return
    known = control_ids(tokenizer)
    builder = SequenceBuilder(tokenizer)
    for task in tasks:
        tokenizer.check_words(task.query)
        asked = builder.question(task.text, start=0, history=task.history)
        plain = builder.question(
            dataclasses.replace(task, query="dog", regions=()).text,
            start=0,
            history=tuple(Exchange("cat", turn.answer) for turn in task.history),
        )
        spoken = [known[int(number)] for number in asked.ids if int(number) in known]
        ours = [known[int(number)] for number in plain.ids if int(number) in known]
        named = [region_token(region) for region in task.regions]
        assert sorted(spoken) == sorted(ours + named + _pointed(before if task.history else ""))


def _pointed(history: str) -> list[str]:
    """Regions and tags that an earlier turn may speak of."""
    found = []
    for token in ("<ground>", "</ground>", "<objects>", "</objects>", "<region3>"):
        found += [token] * history.count(token)
    return found
