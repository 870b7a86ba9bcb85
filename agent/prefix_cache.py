"""Prefixes of recent frames: least recently used out first, within a byte budget, counted.

Knows no model; a prefix is whatever says how many bytes it holds.
"""

from __future__ import annotations

from collections import OrderedDict

from agent.model.ragged_attention import Prefix


class PrefixCache:
    """Key to prefix; one larger than the budget is not kept."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self.evicted = 0
        self._entries: OrderedDict[str, Prefix] = OrderedDict()

    def get(self, key: str) -> Prefix | None:
        """The prefix of a frame, if it is still there; an empty key is never there."""
        prefix = self._entries.get(key) if key else None
        if prefix is None:
            self.misses += 1
            return None
        self._entries.move_to_end(key)
        self.hits += 1
        return prefix

    def put(self, key: str, prefix: Prefix) -> None:
        """Keep a prefix; older ones make room."""
        if not key or prefix.num_bytes > self.budget_bytes or key in self._entries:
            return
        self._entries[key] = prefix
        self.num_bytes += prefix.num_bytes
        while self.num_bytes > self.budget_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
            self.evicted += 1

    def clear(self) -> None:
        """Forget every prefix."""
        self._entries.clear()
        self.num_bytes = 0
