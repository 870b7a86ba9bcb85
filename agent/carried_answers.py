"""An earlier answer carried over to a new frame's regions: guesses for the language model.

Boxes that are expected (tracks, or the last answer's) are matched with the frame's proposals and
written down as the model would. Knows no tracker and no tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from agent.detections import FloatArray, Proposals, box_iou
from agent.prompts import Task, region_token

_SAME_IOU = 0.5
_PERHAPS_IOU = 0.25
"""A proposal that overlaps this much may be the thing, if it is not the nearest."""
_MOST = 6


def carried_answers(task: Task, expected: FloatArray, proposals: Proposals) -> tuple[str, ...]:
    """Answers that name the proposals nearest to the expected boxes, likeliest first.

    The first names the nearest proposal of every expected box that has one. Others leave one
    out, since what is followed may have left, or name the next nearest in one's place. None at
    all when `task` is not answered by one label's boxes.

    Args:
        task: a question with one label.
        expected: (n, 4) pixels of the new frame; none is a guess of "not here".
        proposals: the new frame's.
    """
    if not task.kind.searches or not task.query:
        return ()
    overlap = box_iou(np.asarray(expected, dtype=np.float32), proposals.xyxy)
    nearest: set[int] = set()
    instead: list[tuple[int, int]] = []
    for row in overlap if len(proposals) else ():
        ranked = [int(index) for index in np.argsort(-row, kind="stable")]
        if row[ranked[0]] >= _SAME_IOU:
            nearest.add(ranked[0])
            instead += [(ranked[0], other) for other in ranked[1:2] if row[other] >= _PERHAPS_IOU]
    sets = [frozenset(nearest)]
    sets += [frozenset(nearest - {left_out}) for left_out in sorted(nearest, reverse=True)]
    sets += [frozenset(nearest - {one} | {other}) for one, other in instead]
    return tuple(_written(task, regions) for regions in list(dict.fromkeys(sets))[:_MOST])


def _written(task: Task, regions: Iterable[int]) -> str:
    tokens = "".join(region_token(index) for index in sorted(regions))
    return f"<ground>{task.query}</ground><objects>{tokens}</objects>"
