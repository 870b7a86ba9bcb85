"""The wire of second looks: zoom requests in, revisions and their crops out.

Knows no session and no stage; what they share with other calls is in
`deployments/wire/messages.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.crops import Crop
from agent.revisions import Origin, Revision
from agent.streaming.session import StandingQuery
from agent.zoom_policy import Arrangement, Zoom, ZoomPolicy
from deployments.wire import messages
from deployments.wire.messages import ReceivedFrame
from groundstream.errors import InvalidRequest
from groundstream.protos import vision_agent_pb2 as pb

_ZOOM_POLICY = messages.members_by_number(pb.ZoomPolicy, ZoomPolicy, ZoomPolicy.OFF)
_ARRANGEMENT = messages.members_by_number(pb.ZoomArrangement, Arrangement, Arrangement.SHEET)


def zoom_from_message(message: pb.Zoom) -> Zoom:
    """How a single call wants its frame to be looked at.

    Raises:
        InvalidRequest: a policy, an arrangement or a budget without meaning.
    """
    if not math.isfinite(message.budget_ms) or message.budget_ms < 0.0:
        raise InvalidRequest("zoom.budget_ms must be positive, or 0 for the call's deadline")
    return Zoom(
        messages.known_value(_ZOOM_POLICY, message.policy, "zoom policy"),
        vision_tokens=message.max_vision_tokens or None,
        budget_s=message.budget_ms / 1e3 or None,
        arrangement=messages.known_value(_ARRANGEMENT, message.arrangement, "zoom arrangement"),
    )


def revision_to_message(
    received: ReceivedFrame,
    queries: Sequence[StandingQuery],
    revision: Revision,
    *,
    answer_id: str,
    answered_time_ns: int,
) -> pb.FrameResult:
    """A single call's answers as they stand."""
    grounding = revision.grounding
    answers = [
        messages.answer_to_message(query, answer, grounding.proposals)
        for query, answer in zip(queries, grounding.answers, strict=True)
    ]
    for answer, origins in zip(answers, revision.origins, strict=True):
        for detection, origin in zip(answer.detections, origins, strict=True):
            if origin is not None:
                _put_origin(detection, origin, revision.crops[origin.crop])
    result = messages.result_to_message(
        received, answers, grounding, epoch=0, answered_time_ns=answered_time_ns
    )
    result.revision.CopyFrom(
        pb.Revision(
            answer_id=answer_id,
            number=revision.number,
            final=revision.final,
            cut_short=revision.cut_short,
            num_vision_tokens=revision.vision_tokens,
        )
    )
    for crop in revision.crops:
        scale_x, scale_y = crop.scale
        result.crops.append(
            pb.Crop(box=messages.box_to_message(crop.box), scale_x=scale_x, scale_y=scale_y)
        )
    return result


def _put_origin(detection: pb.Detection, origin: Origin, crop: Crop) -> None:
    """Where a box was found, and the two steps from there to the frame."""
    detection.crop_index = origin.crop
    detection.proposal_box.CopyFrom(messages.box_to_message(origin.found))
    scale_x, scale_y = crop.scale
    left, top = crop.place[:2]
    detection.transforms.extend(
        [
            pb.Transform(
                kind=pb.TRANSFORM_KIND_RESIZE,
                scale_x=1.0 / scale_x,
                scale_y=1.0 / scale_y,
                offset_x=-left / scale_x,
                offset_y=-top / scale_y,
            ),
            pb.Transform(
                kind=pb.TRANSFORM_KIND_CROP,
                scale_x=1.0,
                scale_y=1.0,
                offset_x=crop.box[0],
                offset_y=crop.box[1],
            ),
        ]
    )
