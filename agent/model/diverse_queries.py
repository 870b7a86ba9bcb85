"""Queries of OmDet-Turbo that do not all stand on the same few objects.

The encoder head scores every location, and a large object's many locations crowd small ones out of
the best few hundred. Here a location whose box repeats a better one's comes last. The published
network does without; nano, with its 300 queries, does not (docs/decisions.md).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def prefer_diverse_queries(decoder: Any, *, num_candidates: int, max_iou: float) -> None:
    """Make a transformers `OmDetTurboDecoder` choose its queries among more candidates.

    Args:
        num_candidates: locations of the best score that are looked at.
        max_iou: a candidate that overlaps a better one by more is taken only when others run out.
    """
    num_queries = int(decoder.num_queries)
    # The same layers under another number: the decoder's own may be in use by another thread.
    wider = copy.copy(decoder)
    wider.num_queries = num_candidates

    def choose_diverse(*args: object, **kwargs: object) -> tuple[Tensor, ...]:
        wider.training = decoder.training
        *per_candidate, anchors = wider._get_decoder_input(*args, **kwargs)
        # Candidates come sorted by score; the third tensor is their boxes.
        order = diverse_order(per_candidate[2], max_iou)[:, :num_queries, None]
        chosen = [v.gather(1, order.expand(-1, -1, v.shape[-1])) for v in per_candidate]
        return *chosen, anchors

    decoder._get_decoder_input = choose_diverse


def diverse_order(boxes: Tensor, max_iou: float) -> Tensor:
    """Indices of boxes sorted by score, those that repeat a better one moved to the end.

    Args:
        boxes: (batch, n, 4) cx, cy, w, h, best first.

    Returns:
        (batch, n) indices.
    """
    boxes = boxes.detach()
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    area = boxes[..., 2] * boxes[..., 3]
    shared = torch.ones(())
    for axis in (0, 1):
        a, b = low[..., axis], high[..., axis]
        right, left = (
            torch.minimum(b[:, :, None], b[:, None]),
            torch.maximum(a[:, :, None], a[:, None]),
        )
        shared = shared * (right - left).clamp_(min=0.0)
    # IoU > t, written without a division: shared > t * (union).
    union = area[:, :, None] + area[:, None] - shared
    repeats = (shared > max_iou * union).triu_(diagonal=1).any(dim=1)
    rank = torch.arange(boxes.shape[1], device=boxes.device)
    return (repeats * boxes.shape[1] + rank).argsort(dim=1)
