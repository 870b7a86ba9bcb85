"""An earlier answer carried over to a new frame's regions: a guess for the language model.

Boxes that are expected (tracks, or the last answer's) are matched with the frame's proposals and
written down as the model would. Knows no tracker and no tokens.
"""

from __future__ import annotations

import numpy as np

from agent.detections import FloatArray, Proposals, box_iou
from agent.prompts import Task, region_token

_SAME_IOU = 0.5


def carried_answer(task: Task, expected: FloatArray, proposals: Proposals) -> str:
    """The answer that names the proposals nearest to the expected boxes, in order of number.

    Empty when `task` is not answered by one label's boxes, or some expected box has no proposal.

    Args:
        task: a question with one label.
        expected: (n, 4) pixels of the new frame; none is a guess of "not here".
        proposals: the new frame's.
    """
    if not task.kind.searches or not task.query:
        return ""
    if len(expected) and not len(proposals):
        return ""
    regions: set[int] = set()
    if len(expected):
        overlap = box_iou(np.asarray(expected, dtype=np.float32), proposals.xyxy)
        if (overlap.max(axis=1) < _SAME_IOU).any():
            return ""
        regions = {int(index) for index in overlap.argmax(axis=1)}
    tokens = "".join(region_token(index) for index in sorted(regions))
    return f"<ground>{task.query}</ground><objects>{tokens}</objects>"
