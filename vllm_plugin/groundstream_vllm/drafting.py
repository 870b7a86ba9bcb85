"""Guesses of what an answer says, as vLLM's speculative decoding takes them.

vLLM verifies one line of guesses where our engine verifies a tree, and none in an answer's first
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import nn
from vllm.config import VllmConfig


class Proposer:
    """Made by vLLM's runner, which knows its requests only by their rows."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self.guess: Callable[[int, Sequence[int]], list[int]] = lambda row, written: []
        """What may follow what the request of a row has written just now; the engine sets it."""

    def load_model(self, model: nn.Module) -> None:
        """There is no other model."""

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: NDArray[Any],
        token_ids_cpu: NDArray[Any],
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """One line of guesses for each row that wrote something in this pass."""
        return [
            self.guess(row, sampled) if sampled else []
            for row, sampled in enumerate(sampled_token_ids)
        ]
