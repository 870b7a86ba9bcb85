"""Which locations become queries: no two on the same box while others are to be had."""

from __future__ import annotations

import torch

from agent.model.diverse_queries import diverse_order, prefer_diverse_queries
from agent.model.proposal_network import ProposalNetwork, nano_proposal_config
from agent.training.proposals import paired_iou, to_corners

BOXES = torch.tensor(
    [
        [0.5, 0.5, 0.2, 0.2],
        [0.51, 0.5, 0.2, 0.2],  # repeats the first
        [0.2, 0.2, 0.1, 0.1],
        [0.5, 0.51, 0.2, 0.2],  # repeats the first
        [0.8, 0.8, 0.3, 0.1],
    ]
)


def test_repeats_of_a_better_box_come_last_and_order_is_kept_otherwise() -> None:
    assert diverse_order(BOXES[None], 0.7).tolist() == [[0, 2, 4, 1, 3]]
    assert diverse_order(BOXES[None], 1.0).tolist() == [[0, 1, 2, 3, 4]]


def test_order_agrees_with_overlap_computed_pair_by_pair() -> None:
    boxes = torch.rand(3, 40, 4, generator=torch.Generator().manual_seed(1)) * 0.3 + 0.3
    corners = to_corners(boxes)
    overlap = paired_iou(corners[:, :, None], corners[:, None])[0]
    for row in range(3):
        repeats = [bool((overlap[row, :i, i] > 0.5).any()) for i in range(40)]
        wanted = sorted(range(40), key=lambda i: (repeats[i], i))
        assert diverse_order(boxes, 0.5)[row].tolist() == wanted


class Chooser:
    """The part of transformers' decoder that is asked for queries."""

    def __init__(self, boxes: torch.Tensor, num_queries: int) -> None:
        self.num_queries = num_queries
        self.training = False
        self._boxes = boxes

    def _get_decoder_input(self) -> tuple[torch.Tensor, ...]:
        boxes = self._boxes[:, : self.num_queries]
        score = torch.arange(boxes.shape[1], dtype=torch.float32)[None, :, None]
        return boxes + 1, boxes + 2, boxes, score, torch.zeros(7)


def test_a_decoder_gets_the_diverse_ones_of_more_candidates() -> None:
    chooser = Chooser(BOXES[None], num_queries=3)
    prefer_diverse_queries(chooser, num_candidates=5, max_iou=0.7)
    embeddings, references, boxes, score, anchors = chooser._get_decoder_input()
    assert score.flatten().tolist() == [0, 2, 4]
    torch.testing.assert_close(boxes, BOXES[None, [0, 2, 4]])
    torch.testing.assert_close(embeddings, boxes + 1)
    torch.testing.assert_close(references, boxes + 2)
    assert anchors.shape == (7,), "anchors are per location, not per query"
    assert chooser.num_queries == 3


def test_another_thread_never_sees_the_number_of_candidates() -> None:
    seen = []

    class Watched(Chooser):
        def _get_decoder_input(self) -> tuple[torch.Tensor, ...]:
            seen.append(chooser.num_queries)
            return super()._get_decoder_input()

    chooser = Watched(BOXES[None], num_queries=3)
    prefer_diverse_queries(chooser, num_candidates=5, max_iou=0.7)
    chooser._get_decoder_input()
    assert seen == [3]


def test_a_network_whose_configuration_says_so_chooses_diverse_queries() -> None:
    config = nano_proposal_config()
    config.num_queries, config.image_size = 20, 96
    config.diverse_queries = {"num_candidates": 100, "max_iou": 0.0}
    torch.manual_seed(0)
    diverse = ProposalNetwork(config).eval()
    config.diverse_queries = None
    plain = ProposalNetwork(config).eval()
    plain.load_state_dict(diverse.state_dict())
    pixels = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        boxes, plain_boxes = diverse(pixels)[0], plain(pixels)[0]
    assert boxes.shape == plain_boxes.shape == (2, 20, 4)
    assert not torch.allclose(boxes, plain_boxes)
