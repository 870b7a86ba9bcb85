"""Errors about models, which no client of the service meets.

They belong to the tree of `groundstream.errors`, where every other error of the agent is:

AgentError
└── CheckpointMismatch    a model directory disagrees with the architecture it declares
    └── ModelNotFetched   the hub has no such model, cannot be reached, or did not give all of it
"""

from __future__ import annotations

from groundstream.errors import AgentError


class CheckpointMismatch(AgentError):
    """Weights and configuration of a model directory do not fit together."""


class ModelNotFetched(CheckpointMismatch):
    """A model of the hub is not on this machine, and could not be brought there."""
