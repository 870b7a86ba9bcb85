"""How much one tenant may have of what all tenants share."""

from __future__ import annotations


def most_of_one(total: int) -> int:
    """Three quarters, and at least 1: some is left for the next tenant while that is in use."""
    return max(1, total * 3 // 4)
