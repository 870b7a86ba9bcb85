"""The auxiliary encoder deployment: fine detail of every box."""

from __future__ import annotations

from deployments.stage_replica import EncoderReplica


class AuxiliaryEncoder(EncoderReplica):
    """One `agent.encoders.AuxiliaryEncoderStage`; `encode` returns `AuxiliaryFeatures`."""
