"""The primary encoder deployment: the language model's own eyes."""

from __future__ import annotations

from deployments.stage_replica import EncoderReplica


class PrimaryEncoder(EncoderReplica):
    """One `agent.encoders.PrimaryEncoderStage`; `encode` returns `PrimaryFeatures`."""
