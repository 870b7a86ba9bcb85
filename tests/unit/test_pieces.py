"""Ids to text, token by token: whatever is written, the pieces are the text of the whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.tokenizer import PromptTokenizer

_UNFINISHED = "�"


def test_a_character_belongs_to_the_token_that_completes_it(tokenizer: PromptTokenizer) -> None:
    ids = tokenizer.encode("ж𓂀")
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids) > 2
    assert [piece for piece in pieces if piece] == ["ж", "𓂀"]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_pieces_make_the_whole(tokenizer: PromptTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert "".join(tokenizer.pieces(ids)) == tokenizer.decode(ids).rstrip(_UNFINISHED)


@given(data=st.data())
def test_any_ids_make_one_piece_each(tokenizer: PromptTokenizer, data: st.DataObject) -> None:
    """Bytes that are no character included: a model that is unsure writes those too."""
    some_id = st.integers(0, tokenizer.vocab_size - 1)
    ids = data.draw(st.lists(some_id, max_size=40))
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    assert tokenizer.decode(ids).startswith("".join(pieces))
