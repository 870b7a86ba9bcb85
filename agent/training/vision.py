"""Pretraining of both vision encoders: tell every box's concept from its region feature.

Stands in for the pretrained towers that the published model starts from, which learned from text:
a region is pulled to the language model's vector of its name (as in CLIP, arXiv 2103.00020, but
with the text side frozen). The whole region path (towers, pyramid, pooling, fusion, positions) is
also trained with throw-away classifiers on the fused feature, on each encoder's share of it (so
that neither leans on the other), and on the image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from agent.model.configuration import nano_config
from agent.model.primary_encoder import PrimaryMaps
from agent.model.projector import build_projector
from agent.model.vlm_fo1 import VLMFO1, Part
from agent.processor import patchify
from agent.training.batches import (
    BACKGROUND,
    PADDING,
    PictureSettings,
    SceneBatch,
    batch_loader,
    nano_concepts,
)
from agent.training.language import name_vectors
from agent.training.loop import CPU, LoopSettings, Objective, Terms, train
from agent.training.workers import Figures

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LIKENESS_SCALE = 16.0
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def normalise_batch(rgb: Tensor, statistics: tuple[tuple[float, ...], ...]) -> Tensor:
    """(batch, height, width, 3) uint8 to (batch, 3, height, width) float32 in channels-last."""
    mean, std = (torch.tensor(values, device=rgb.device)[:, None, None] for values in statistics)
    return (rgb.permute(0, 3, 1, 2).float() / 255.0 - mean) / std


@dataclass(frozen=True)
class VisionRecipe:
    """Pretraining of both encoders."""

    loop: LoopSettings
    pictures: PictureSettings
    label_smoothing: float
    primary: float
    auxiliary: float
    tokens: float
    names: float
    """Weights of the losses; that of the fused feature is 1."""

    def __post_init__(self) -> None:
        self.pictures.require_multiples_of(28)


class VisionPretraining(nn.Module):
    """Both encoders with throw-away classifiers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # The vocabulary does not matter here: no language model is built.
        config = nano_config(1024)
        self.model = VLMFO1(config, frozenset({Part.PRIMARY, Part.AUXILIARY}))
        # The fused attention kernel is several times slower than plain products backwards on a CPU.
        assert self.model.auxiliary_encoder is not None
        self.model.auxiliary_encoder.tower.set_attn_implementation("eager")
        width = config.text.hidden_size
        self.connector = build_projector(config.region_projector, config.region_width, width)
        self.region_head = nn.Linear(width, num_classes + 1)
        self.primary_head = nn.Linear(config.primary_region_width, num_classes + 1)
        self.auxiliary_head = nn.Linear(config.auxiliary_region_width, num_classes + 1)
        self.token_head = nn.Linear(config.vision.out_hidden_size, num_classes + 1)

    def forward(self, rgb: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Region tokens, then logits of fused, primary and auxiliary features and image tokens.

        Args:
            rgb: (batch, height, width, 3) uint8, sides multiples of 28.
            boxes: (batch, num_boxes, 4) pixels.
        """
        primary, auxiliary, tokens = encode_batch(self.model, rgb, boxes)
        height, width = rgb.shape[1:3]
        size = torch.tensor([width, height, width, height], device=rgb.device)
        fused = self.model.region_encoder.fuse(primary, auxiliary, boxes / size)
        regions = self.connector(fused)
        return (
            regions,
            self.region_head(regions),
            self.primary_head(primary),
            self.auxiliary_head(auxiliary),
            self.token_head(tokens),
        )


def encode_batch(model: VLMFO1, rgb: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled primary and auxiliary region vectors and image tokens of a batch of one size."""
    assert model.auxiliary_encoder is not None
    maps = primary_maps(model, rgb)
    last = torch.cat([m.levels[-1] for m in maps])
    primary = model.region_encoder.pool_primary((last,), boxes)
    levels = model.auxiliary_encoder(normalise_batch(rgb, IMAGENET))
    auxiliary = model.region_encoder.pool_auxiliary(levels, boxes)
    return primary, auxiliary, torch.stack([m.image_tokens for m in maps])


def primary_maps(model: VLMFO1, rgb: Tensor) -> list[PrimaryMaps]:
    """What the ViT makes of each picture of a batch of one size."""
    assert model.primary_encoder is not None
    batch, height, width = rgb.shape[:3]
    patch = model.config.vision.patch_size
    grid = torch.tensor([[1, height // patch, width // patch]], device=rgb.device)
    patches = patchify(normalise_batch(rgb, CLIP), patch)
    maps: list[PrimaryMaps] = model.primary_encoder(patches.flatten(0, 1), grid.repeat(batch, 1))
    return maps


def token_classes(batch: SceneBatch, cell: int, background: int) -> Tensor:
    """(batch, rows * columns) class of the smallest object over each image token's centre."""
    height, width = batch.rgb.shape[1:3]
    y, x = (torch.arange(cell / 2, side, cell, device=batch.rgb.device) for side in (height, width))
    cy, cx = (axis.flatten() for axis in torch.meshgrid(y, x, indexing="ij"))
    x1, y1, x2, y2 = batch.truth[..., None].unbind(2)
    inside = (cx >= x1) & (cx <= x2) & (cy >= y1) & (cy <= y2) & (batch.classes >= 0)[..., None]
    area = ((x2 - x1) * (y2 - y1)).expand_as(inside).masked_fill(~inside, torch.inf)
    smallest, index = area.min(dim=1)
    found = batch.classes.gather(1, index)
    return torch.where(torch.isfinite(smallest), found, background)


def likeness(regions: Tensor, names: Tensor) -> Tensor:
    """(n, num_names) scaled cosines of region tokens and name vectors."""
    scaled = nn.functional.normalize(regions.float(), dim=-1) * LIKENESS_SCALE
    return scaled @ nn.functional.normalize(names.float(), dim=-1).T


def run(
    artwork: Path,
    directory: Path,
    language: Path,
    recipe: VisionRecipe,
    *,
    device: torch.device = CPU,
) -> None:
    """Train, or go on training, into `directory`, towards the names of the `language` stage."""
    concepts = nano_concepts()
    background = len(concepts)
    torch.manual_seed(recipe.loop.seed)
    module = VisionPretraining(len(concepts)).to(device)
    names = name_vectors(language)[list(concepts)].to(device)
    settings = recipe.pictures.composed(artwork, concepts)
    smoothing = recipe.label_smoothing
    loss_fn = nn.CrossEntropyLoss(ignore_index=PADDING, label_smoothing=smoothing)

    def targets(batch: SceneBatch) -> Tensor:
        return batch.classes.masked_fill(batch.classes == BACKGROUND, background).flatten()

    def losses(batch: SceneBatch) -> tuple[Terms, Figures]:
        target = targets(batch)
        with recipe.loop.autocast(device):
            regions, fused, primary, auxiliary, tokens = module(batch.rgb, batch.boxes)
        on_tokens = token_classes(batch, 28, background).flatten()
        terms = {
            name: weight * loss_fn(logits.float().flatten(0, 1), classes)
            for name, weight, logits, classes in (
                ("fused_loss", 1.0, fused, target),
                ("primary_loss", recipe.primary, primary, target),
                ("auxiliary_loss", recipe.auxiliary, auxiliary, target),
                ("tokens_loss", recipe.tokens, tokens, on_tokens),
            )
        }
        seen = (target >= 0) & (target < background)
        named = likeness(regions.flatten(0, 1)[seen], names)
        terms["named_loss"] = recipe.names * nn.functional.cross_entropy(
            named, target[seen], label_smoothing=smoothing
        )
        figures = {
            name: accuracy(logits.flatten(0, 1)[seen], target[seen])
            for name, logits in (("top1", fused), ("primary", primary), ("auxiliary", auxiliary))
        }
        figures["named"] = accuracy(named, target[seen])
        return terms, figures

    def counts(batch: SceneBatch) -> Figures:
        target = targets(batch)
        boxes = float((target != PADDING).sum())
        named = float(((target >= 0) & (target < background)).sum())
        tokens = float(len(batch.rgb) * (batch.rgb.shape[1] // 28) * (batch.rgb.shape[2] // 28))
        regions = dict.fromkeys(("fused_loss", "primary_loss", "auxiliary_loss"), boxes)
        return {**regions, "tokens_loss": tokens, "named_loss": named}

    objective = Objective(
        batches=lambda first, stride: iter(batch_loader(settings, start=first, stride=stride)),
        losses=losses,
        counts=counts,
    )
    train(module, objective, recipe.loop, directory)


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of rows whose largest logit is the target."""
    return float((logits.argmax(-1) == target).float().mean())
