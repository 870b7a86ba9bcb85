"""The proposal deployment: where might objects be, and what might they be?"""

from __future__ import annotations

from agent.detections import FloatArray, Proposals
from agent.frame import Frame
from agent.urgency import Limits, Urgency
from deployments.out_of_memory import memory_errors_typed
from deployments.stage_queue import Served
from deployments.stage_replica import StageReplica


class Proposal(StageReplica):
    """One `agent.proposer.Proposer`."""

    async def propose(
        self,
        frame: Frame,
        left_s: float | None = None,
        urgency: Urgency = Urgency.ONE_OFF,
        model: str = "",
    ) -> Served[Proposals]:
        """Class-agnostic boxes of one frame, best first.

        Raises:
            Overloaded: the caller would have waited longer than `left_s`.
            StageUnavailable: this replica has another `model`.
        """
        self.check_model(model)
        ticket = self.line.ticket(Limits.starting_now(left_s, urgency))
        with memory_errors_typed():
            served = await self.line.run_together(
                ticket, self.stage.propose, frame, limit=self.max_batch_frames
            )
        return self.signed(served)

    async def describe(
        self,
        frame: Frame,
        left_s: float | None,
        urgency: Urgency,
        model: str,
        boxes: FloatArray,
    ) -> Served[FloatArray]:
        """Class evidence for boxes that others found: (num_boxes, num_classes).

        Raises:
            Overloaded: the caller would have waited longer than `left_s`.
            StageUnavailable: this replica has another `model`.
        """
        self.check_model(model)
        ticket = self.line.ticket(Limits.starting_now(left_s, urgency))
        with memory_errors_typed():
            return self.signed(await self.line.run(ticket, self.stage.describe, frame, boxes))
