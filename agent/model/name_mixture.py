"""The connector of the embedded model: a region as a mixture of the names it may have.

The vision parts say how much they believe in each of their classes. A region's slots are the sums
of the classes' names, as vectors among the language model's own embeddings, weighted by that
belief (as in ConSE, arXiv 1312.5650), so a language model that has read English can read them
before it was ever trained on a picture. The tables start as names and are trained on. Tensors in,
tensors out; knows no words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_COCO = 80
NUM_IMAGENET = 1000
NUM_APPEARANCE = 16
"""Channels of `agent.model.appearance`."""
NUM_PLACE = 8
NUM_SLOTS = 2


class NameMixture(nn.Module):
    """Class evidence, appearance and place of each region to its two slots.

    The first slot holds the region's own names ("beagle") and what it looks like and where it is;
    the second holds everyday names ("dog") alone, next to the region token that answers repeat.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        num_classes = NUM_COCO + NUM_IMAGENET
        self.own_names = nn.Parameter(torch.zeros(num_classes, hidden_size))
        self.everyday_names = nn.Parameter(torch.zeros(num_classes, hidden_size))
        self.nothing = nn.Parameter(torch.zeros(NUM_SLOTS, hidden_size))
        """What a slot holds where nothing is believed: the model normalises what it reads, so the
        strength of a belief must be a direction and not a length."""
        self.appearance = nn.Linear(NUM_APPEARANCE, hidden_size, bias=False)
        self.place = nn.Linear(NUM_PLACE, hidden_size)
        self.coco_power = nn.Parameter(torch.tensor(1.2))
        """The detector is too sure of things outside its classes: its scores are raised to this."""
        self.imagenet_discount = nn.Parameter(torch.tensor(0.8))
        """How far a sure detector outweighs the classifier."""
        self.imagenet_share = nn.Parameter(torch.ones(NUM_IMAGENET))
        """How much each of the classifier's classes counts: less where the detector knows the thing
        too and can speak for itself."""
        self.steepness = nn.Parameter(torch.tensor(1.65))
        self.threshold = nn.Parameter(torch.tensor(-1.5))
        """Where objectness lets half of the classifier's belief count, as a logit: the detector's
        boxes of whole things reach 0.4, those of parts and background 0.1 (docs/decisions)."""
        nn.init.zeros_(self.place.weight)
        nn.init.zeros_(self.place.bias)

    def forward(self, auxiliary: Tensor, primary: Tensor, boxes: Tensor) -> Tensor:
        """Slots of each region.

        Args:
            auxiliary: (n, 80) scores of the detector's classes, 0..1.
            primary: (n, 1016) probabilities of the classifier's classes, then appearance.
            boxes: (n, 4) xyxy relative to the picture, 0..1.

        Returns:
            (n, 2, hidden).
        """
        weights = self.weights(auxiliary, primary[:, :NUM_IMAGENET])
        seen = self.appearance(primary[:, NUM_IMAGENET:]) + self.place(place_of(boxes))
        own, everyday = (
            self._mixed(weights, 0, self.own_names),
            self._mixed(weights, 1, self.everyday_names),
        )
        return torch.stack([own + seen, everyday], dim=1)

    def cells(self, probabilities: Tensor) -> Tensor:
        """(cells, 1000) class probabilities of parts of the picture to (cells, hidden)."""
        return self._mixed(
            nn.functional.pad(0.7 * probabilities, (NUM_COCO, 0)), 1, self.everyday_names
        )

    def _mixed(self, weights: Tensor, slot: int, names: Tensor) -> Tensor:
        doubt = (1 - weights.sum(-1, keepdim=True)).clamp(min=0)
        return weights @ names + doubt * self.nothing[slot]

    def weights(self, coco: Tensor, imagenet: Tensor) -> Tensor:
        """(n, 1080) how much each name counts, from (n, 80) scores and (n, 1000) probabilities; at
        most about one in all."""
        coco = coco.clamp(1e-4, 1 - 1e-4)
        objectness = coco.amax(-1, keepdim=True)
        strength = torch.sigmoid(self.steepness * (torch.logit(objectness) - self.threshold))
        # The floor keeps the gradient of a power finite at zero.
        weighed = coco ** self.coco_power.clamp(0.5, 3.0)
        named = imagenet * self.imagenet_share * (1 - self.imagenet_discount * objectness)
        return torch.cat([weighed, strength * named], dim=-1)


def place_of(boxes: Tensor) -> Tensor:
    """(n, 8): centre, size, edges' nearness and area of boxes relative to the picture."""
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    width, height = x2 - x1, y2 - y1
    area = (width * height).clamp(min=0).sqrt()
    centre_x, centre_y = (x1 + x2) / 2 - 0.5, (y1 + y2) / 2 - 0.5
    return torch.stack(
        [centre_x, centre_y, width, height, area, centre_x.abs(), centre_y.abs(), area**2], dim=-1
    )
