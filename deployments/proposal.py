"""The proposal deployment: where might objects be?"""

from __future__ import annotations

import asyncio

from agent.detections import Proposals
from agent.frame import Frame
from deployments.stage_replica import StageReplica


class Proposal(StageReplica):
    """One `agent.proposer.Proposer`."""

    batched = "propose"

    async def propose(self, frame: Frame) -> Proposals:
        """Class-agnostic boxes of one frame, best first."""
        proposals: Proposals = await asyncio.wrap_future(self.frames.submit(frame))
        return proposals
