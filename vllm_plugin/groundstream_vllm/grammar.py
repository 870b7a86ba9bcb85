"""Our answer grammars where vLLM keeps grammars: as masks over the vocabulary.

vLLM's own backends read a language and a tokenizer. These grammars are automata over tokens
already, and some know more than a language can say.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.structured_output.backend_types import (
    StructuredOutputBackend,
    StructuredOutputGrammar,
)
from vllm.v1.structured_output.request import StructuredOutputRequest

from agent.grammar import Grammar

_WORD = 32
"""Tokens in one number of a mask."""


class MaskedGrammar(StructuredOutputGrammar):  # type: ignore[misc]
    """One answer's grammar, with the states that a rejected guess takes it back to."""

    def __init__(self, grammar: Grammar, vocab_size: int) -> None:
        self._states = [grammar]
        self._vocab_size = vocab_size
        self._known: tuple[Grammar, Tensor] | None = None

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        """Go on behind these tokens, which the mask let through."""
        for token in tokens:
            self._states.append(self._states[-1].advanced(token))
        return True

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        """The guessed tokens up to the first that may not come."""
        state = self._states[-1]
        for index, token in enumerate(tokens):
            if not self._allowed(state)[token]:
                return tokens[:index]
            state = state.advanced(token)
        return tokens

    def rollback(self, num_tokens: int) -> None:
        """Go back before the last tokens."""
        del self._states[len(self._states) - num_tokens :]

    def fill_bitmask(self, bitmask: Tensor, batch_index: int) -> None:
        """Write one bit for each token that may come next."""
        bits = torch.zeros(bitmask.shape[1] * _WORD, dtype=torch.int64)
        allowed = self._allowed(self._states[-1])
        bits[: len(allowed)] = allowed
        words = (bits.view(-1, _WORD) << torch.arange(_WORD)).sum(1)
        bitmask[batch_index] = words.to(torch.int32)

    def is_terminated(self) -> bool:
        """The end token ends the request; there is no other end."""
        return False

    def reset(self) -> None:
        """Begin again."""
        del self._states[1:]

    def _allowed(self, state: Grammar) -> Tensor:
        """(vocabulary,) whether each token may come next; the last state's are kept."""
        if self._known is None or self._known[0] is not state:
            self._known = state, state.constrain(torch.zeros(self._vocab_size)).isfinite()
        return self._known[1]


class MaskBackend(StructuredOutputBackend):  # type: ignore[misc]
    """Makes the masks' memory; grammars come with their requests."""

    def compile_grammar(self, *_: object, **__: object) -> StructuredOutputGrammar:
        """Never asked for: no request names a grammar in words."""
        raise NotImplementedError

    def allocate_token_bitmask(self, max_num_seqs: int) -> Tensor:
        """Everything allowed."""
        return torch.full((max_num_seqs, -(-self.vocab_size // _WORD)), -1, dtype=torch.int32)

    def destroy(self) -> None:
        """Nothing to let go of."""


def grammar_request(grammar: Grammar, vocab_size: int) -> StructuredOutputRequest:
    """What makes a request of vLLM's keep to a grammar."""
    request = StructuredOutputRequest(StructuredOutputsParams(json_object=True))
    request.grammar = MaskedGrammar(grammar, vocab_size)
    return request
