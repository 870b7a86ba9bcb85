"""Boxes and fused region features of composed pictures, computed without gradients.

Everything before the connector is frozen while it is aligned, so features are computed once and
used many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agent.detections import box_iou, centred_to_corners, select_proposals
from agent.model.proposal_network import ProposalNetwork
from agent.training.batches import PictureSettings, SceneBatch
from agent.training.grounding_model import GroundingTraining
from agent.training.loop import autocast, check_precision, moved
from agent.training.vision import IMAGENET, normalise_batch


@dataclass(frozen=True)
class RegionsRecipe:
    """The pool of region features both stages of the paper learn from first."""

    batches: int
    pictures: PictureSettings
    precision: str
    """Of the towers' products, as `LoopSettings.precision`."""

    def __post_init__(self) -> None:
        check_precision(self.precision)
        self.pictures.require_multiples_of(28)


@torch.no_grad()
def proposed_boxes(
    network: ProposalNetwork, batch: SceneBatch, *, limit: int = 40
) -> tuple[Tensor, Tensor]:
    """Replace a batch's boxes by proposals: (batch, limit, 4) boxes and their classes.

    A proposal takes the class of the object it overlaps by at least half, else background.
    """
    height, width = batch.rgb.shape[1:3]
    side = network.image_size
    pixels = normalise_batch(batch.rgb, IMAGENET)
    pixels = nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    centred, scores = network(pixels)
    all_boxes = np.zeros((len(centred), limit, 4), dtype=np.float32)
    all_boxes[..., 2:] = 8.0
    classes = np.full((len(centred), limit), -2)
    for row, (box, score) in enumerate(
        zip(centred.float().cpu().numpy(), scores.float().cpu().numpy(), strict=True)
    ):
        kept = select_proposals(
            centred_to_corners(box, width=width, height=height),
            score,
            width=width,
            height=height,
            score_threshold=0.25,
            nms_iou=0.6,
            max_boxes=limit,
            least_side_px=4.0,
        ).xyxy
        objects = (batch.classes[row] >= 0).cpu()
        truth = batch.truth[row].cpu()[objects].numpy()
        found = np.full(len(kept), -1)
        if len(kept) and len(truth):
            overlap = box_iou(kept, truth)
            best = overlap.argmax(axis=1)
            hit = overlap.max(axis=1) >= 0.5
            found[hit] = batch.classes[row].cpu()[objects].numpy()[best[hit]]
        all_boxes[row, : len(kept)] = kept
        classes[row, : len(kept)] = found
    device = batch.rgb.device
    return torch.from_numpy(all_boxes).to(device), torch.from_numpy(classes).to(device)


@torch.no_grad()
def fused_regions(
    module: GroundingTraining, batches: Iterator[SceneBatch], count: int, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fused features (regions, region_width), classes, relative boxes and picture of each region.

    Of `count` batches; pictures are numbered in order, and so are regions.
    """
    device = next(module.parameters()).device
    fused, classes, boxes, pictures = [], [], [], []
    num_pictures = 0
    with autocast(device, precision):
        for _ in range(count):
            batch = moved(next(batches), device)
            joined, _ = module.fused(batch.rgb, batch.boxes)
            real = batch.classes > -2
            fused.append(joined[real].float().cpu())
            classes.append(batch.classes[real].cpu())
            height, width = batch.rgb.shape[1:3]
            boxes.append(batch.boxes[real].cpu() / torch.tensor([width, height] * 2))
            pictures.append(real.nonzero()[:, 0].cpu() + num_pictures)
            num_pictures += len(batch.rgb)
    return torch.cat(fused), torch.cat(classes), torch.cat(boxes), torch.cat(pictures)


@dataclass(frozen=True)
class RegionPool:
    """Fused region features of many scenes, computed once."""

    features: Tensor
    """(regions, region_width)."""
    concepts: Tensor
    """(regions,) concept id, -1 for background."""
    boxes: Tensor
    """(regions, 4) xyxy relative to the picture each comes from."""
    believed: Tensor
    """(regions, trained concepts + 1) what a classifier of the features thinks, the vision
    stage's where there is one; background is last."""
    pictures: Tensor
    """(regions,) number of the picture each comes from; regions of one stand together."""

    def save(self, path: Path) -> None:
        """Keep the pool for the next stage."""
        torch.save(vars(self), path)

    @classmethod
    def load(cls, path: Path) -> RegionPool:
        """A pool that was saved."""
        return cls(**torch.load(path, weights_only=True))


def region_pool(
    module: GroundingTraining,
    batches: Iterator[SceneBatch],
    network: ProposalNetwork,
    concept_of: Tensor,
    believe: Callable[[Tensor, Tensor], Tensor],
    recipe: RegionsRecipe,
) -> RegionPool:
    """Regions around true boxes and, every other batch, around what the OPN proposes.

    A proposal that covers an object badly counts as background, so that the model learns to
    leave it out.

    Args:
        believe: probabilities of the classes, from features and true classes.
    """

    device = next(network.parameters()).device

    def proposed(stream: Iterator[SceneBatch]) -> Iterator[SceneBatch]:
        for number, batch in enumerate(stream):
            if number % 2:
                batch = moved(batch, device)
                boxes, classes = proposed_boxes(network, batch)
                batch = replace(batch, boxes=boxes, classes=classes)
            yield batch

    features, classes, boxes, pictures = fused_regions(
        module, proposed(batches), recipe.batches, recipe.precision
    )
    return RegionPool(features, concept_of[classes], boxes, believe(features, classes), pictures)


def no_beliefs(features: Tensor, _classes: Tensor) -> Tensor:
    """(regions, 0): nobody has judged them."""
    return features.new_zeros(len(features), 0)


@torch.no_grad()
def classify(features: Tensor, vision: dict[str, Tensor]) -> Tensor:
    """(regions, classes + 1) probabilities by the classifier of the vision stage."""
    hidden = features
    for name, activation in (
        ("connector.0", nn.GELU()),
        ("connector.2", None),
        ("region_head", None),
    ):
        hidden = nn.functional.linear(hidden, vision[f"{name}.weight"], vision[f"{name}.bias"])
        hidden = hidden if activation is None else activation(hidden)
    return hidden.softmax(-1)
