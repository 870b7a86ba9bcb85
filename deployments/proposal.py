"""The proposal deployment: where might objects be?"""

from __future__ import annotations

from agent.detections import Proposals
from agent.frame import Frame
from deployments.stage_replica import StageReplica


class Proposal(StageReplica):
    """One `agent.proposer.Proposer`."""

    async def propose(self, frame: Frame) -> Proposals:
        """Class-agnostic boxes of one frame, best first."""
        proposals: list[Proposals] = await self.run(self.stage.propose, [frame])
        return proposals[0]
