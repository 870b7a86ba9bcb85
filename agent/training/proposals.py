"""Pretraining of the proposal network on composed scenes.

transformers ships OmDet-Turbo without a loss. Ours is dense: every location whose centre lies in
the middle of an object, on the pyramid level fit for its size, learns box and objectness; every
decoder query learns from the object that the box it started from overlaps most: it refines, and
never changes sides. Objectness targets are the overlap reached
(quality focal loss, arXiv 2006.04388); duplicates are left to non-maximum suppression.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.omdet_turbo.modeling_omdet_turbo import get_class_similarity

from agent.model.proposal_network import ProposalNetwork, nano_proposal_config
from agent.training.batches import PictureSettings, SceneBatch, batch_loader
from agent.training.loop import CPU, LoopSettings, Objective, Terms, train
from agent.training.vision import IMAGENET, normalise_batch
from agent.training.workers import Figures

_STRIDES = (8, 16, 32)
_LEVEL_SIDES = ((0.0, 0.16), (0.08, 0.32), (0.2, 2.0))
"""Longer sides, relative to the image, that each level answers for; they overlap on purpose."""


@dataclass(frozen=True)
class ProposalsRecipe:
    """Pretraining of the proposal network."""

    loop: LoopSettings
    pictures: PictureSettings
    least_quality: float
    """Objectness that a location of an object learns at least, however badly its box fits."""
    least_overlap: float
    """Overlap from which a decoder query learns an object, besides the object's best query."""

    def __post_init__(self) -> None:
        self.pictures.require_multiples_of(_STRIDES[-1])


@dataclass(frozen=True)
class DenseOutput:
    """What the encoder head says at every location, before the best are chosen as queries."""

    boxes: Tensor
    """(batch, locations, 4) cx, cy, w, h in 0..1."""
    logits: Tensor
    """(batch, locations)."""


@dataclass(frozen=True)
class DecoderOutput:
    """What the decoder makes of the queries."""

    references: Tensor
    """(batch, queries, 4) cx, cy, w, h of the locations the queries come from."""
    boxes: Tensor
    """(layers, batch, queries, 4)."""
    logits: Tensor
    """(layers, batch, queries)."""


def forward_dense(network: ProposalNetwork, pixels: Tensor) -> tuple[DenseOutput, DecoderOutput]:
    """The encoder's output at every location, and the decoder's."""
    detector, batch = network.detector, len(pixels)
    states = detector.encoder(detector.vision_backbone(pixels)).extracted_states
    classes, tasks, mask = network.prompt()
    decoder = detector.decoder
    # Boxes in float32: bfloat16 knows a coordinate to a pixel at best, a small object needs better.
    with torch.autocast(pixels.device.type, enabled=False):
        states = tuple(state.float() for state in states)
        classes, tasks = (prompt.float().expand(-1, batch, -1) for prompt in (classes, tasks))
        features, shapes, _, _ = decoder._get_encoder_input(states)
        anchors, valid = decoder.generate_anchors(shapes, device=features.device)
        hidden = decoder.encoder_vision_features(torch.where(valid, features, 0.0))
        boxes = (decoder.encoder_bbox_head(hidden) + anchors).sigmoid()
        projected = decoder.encoder_class_head(classes).permute(1, 2, 0)
        logits = get_class_similarity(decoder.class_distance_type, hidden, projected).squeeze(-1)
        output = decoder(states, classes, tasks, mask.expand(batch, -1))
    decoded = DecoderOutput(
        output.encoder_coord_logits, output.decoder_coords, output.decoder_classes[..., 0]
    )
    return DenseOutput(boxes, logits), decoded


def assign_locations(truth: Tensor, present: Tensor, side: int) -> Tensor:
    """Which object each location learns: (batch, locations) object index or -1.

    Args:
        truth: (batch, num_boxes, 4) xyxy in 0..1.
        present: (batch, num_boxes) whether the row is an object.
        side: image side in pixels.
    """
    centres, lows, highs, radii = [], [], [], []
    for stride, (low, high) in zip(_STRIDES, _LEVEL_SIDES, strict=True):
        cells = side // stride
        axis = (torch.arange(cells) + 0.5) / cells
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        centres.append(torch.stack([x, y], -1).view(-1, 2))
        count = cells * cells
        lows.append(torch.full((count,), low))
        highs.append(torch.full((count,), high))
        radii.append(torch.full((count,), 1.2 * stride / side))
    centre, least, most, radius = (
        torch.cat(v).to(truth.device)[None, :, None] for v in (centres, lows, highs, radii)
    )
    middle = ((truth[..., :2] + truth[..., 2:]) / 2)[:, None]
    half = ((truth[..., 2:] - truth[..., :2]) / 2)[:, None]
    reach = torch.minimum(half, radius[..., None])
    near = ((centre - middle).abs() <= reach).all(-1)
    longer = 2 * half.amax(-1)
    candidate = near & (longer >= least) & (longer < most) & present[:, None]
    area = (4 * half.prod(-1)).expand_as(candidate).masked_fill(~candidate, torch.inf)
    smallest, index = area.min(-1)
    return torch.where(torch.isfinite(smallest), index, -1)


def paired_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (arXiv 1902.09630) of equally many xyxy boxes."""
    top_left, bottom_right = (
        torch.maximum(a[..., :2], b[..., :2]),
        torch.minimum(a[..., 2:], b[..., 2:]),
    )
    inter = (bottom_right - top_left).clamp(min=0).prod(-1)
    area_a, area_b = (a[..., 2:] - a[..., :2]).prod(-1), (b[..., 2:] - b[..., :2]).prod(-1)
    union = area_a + area_b - inter
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    iou = inter / union.clamp(min=1e-9)
    return iou, iou - (hull - union) / hull.clamp(min=1e-9)


def to_corners(boxes: Tensor) -> Tensor:
    """cx, cy, w, h to xyxy."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """Sum of |quality - p|^2 times binary cross entropy (arXiv 2006.04388, eq. 4, beta 2)."""
    weight = (quality - logits.sigmoid()).detach().pow(2)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return (weight * loss).sum()


def detection_loss(
    boxes: Tensor, logits: Tensor, truth: Tensor, assigned: Tensor, *, least_quality: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Objectness and box loss of one set of predictions, both divided by the positives.

    `least_quality` lifts the objectness target of every positive: where queries are chosen, a
    small object found badly must still be chosen.

    Args:
        boxes: (batch, n, 4) cx, cy, w, h; logits: (batch, n).
        truth: (batch, num_boxes, 4) xyxy; assigned: (batch, n) object index or -1.
    """
    target = truth.gather(1, assigned.clamp(min=0)[..., None].expand(-1, -1, 4))
    positive = assigned >= 0
    iou, giou = paired_iou(to_corners(boxes), target)
    quality = torch.where(positive, iou.detach().clamp(least_quality, 1.0), 0.0)
    count = positive.sum().clamp(min=1)
    corners = (to_corners(boxes) - target).abs().sum(-1)
    box_loss = ((1.0 - giou) * 2.0 + corners * 5.0)[positive].sum() / count
    return quality_focal_loss(logits, quality) / count, box_loss


def assign_queries(references: Tensor, truth: Tensor, present: Tensor, *, least: float) -> Tensor:
    """The object each query's own box overlaps most, or -1 below `least`: (batch, queries).

    An object's best query is always its own, however badly it overlaps: else a small object found
    badly would teach the decoder that nothing is there, and never be found better.

    Args:
        references: (batch, queries, 4) cx, cy, w, h of where the queries start. What the decoder
            makes of them must not decide: a box that strays would never be called back.
    """
    iou = paired_iou(to_corners(references)[:, :, None], truth[:, None])[0]
    iou = iou.masked_fill(~present[:, None], -1.0)
    best, index = iou.max(-1)
    assigned = torch.where(best >= least, index, -1)
    top, query = iou.max(1)
    row, number = torch.nonzero(present & (top > 0.0), as_tuple=True)
    assigned[row, query[row, number]] = number
    return assigned


def run(
    artwork: Path,
    directory: Path,
    recipe: ProposalsRecipe,
    *,
    device: torch.device = CPU,
) -> None:
    """Train, or go on training, the nano proposal network into `directory`."""
    torch.manual_seed(recipe.loop.seed)
    network = ProposalNetwork(nano_proposal_config()).to(device)
    settings = recipe.pictures.composed(artwork, None)
    network.train()

    def losses(batch: SceneBatch) -> tuple[Terms, Figures]:
        side = batch.rgb.shape[1]
        truth = batch.truth / side
        present = batch.classes >= 0
        with recipe.loop.autocast(device):
            dense, decoded = forward_dense(network, normalise_batch(batch.rgb, IMAGENET))
        located = assign_locations(truth, present, side)
        parts = [
            detection_loss(
                dense.boxes, dense.logits, truth, located, least_quality=recipe.least_quality
            )
        ]
        references = decoded.references.detach()
        assigned = assign_queries(references, truth, present, least=recipe.least_overlap)
        for boxes, logits in zip(decoded.boxes.float(), decoded.logits.float(), strict=True):
            parts.append(detection_loss(boxes, logits, truth, assigned))
        begun, best = (
            paired_iou(to_corners(found.float())[:, :, None], truth[:, None])[0].amax(1)
            for found in (decoded.references, decoded.boxes[-1])
        )
        return {"dense": sum_of(parts[:1]), "decoder": sum_of(parts[1:])}, {
            "reference_recall": float((begun[present] >= 0.5).float().mean()),
            "recall": float((best[present] >= 0.5).float().mean()),
            "dense_box": float(parts[0][1].detach()),
            "box": float(parts[-1][1].detach()),
            "objectness": float(parts[-1][0].detach()),
        }

    def counts(batch: SceneBatch) -> Figures:
        side = batch.rgb.shape[1]
        located = assign_locations(batch.truth / side, batch.classes >= 0, side)
        return {"dense": float((located >= 0).sum())}

    objective = Objective(
        batches=lambda first, stride: iter(batch_loader(settings, start=first, stride=stride)),
        losses=losses,
        counts=counts,
    )
    train(network, objective, recipe.loop, directory)


def sum_of(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Objectness and box losses in one."""
    return torch.stack([objectness + box for objectness, box in parts]).sum()
