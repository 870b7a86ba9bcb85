"""The eyes of a trained model go on learning: towers, pyramid and connector, on pictures.

Its language model stays as it is, and what it has learned to read is what regions are pulled to:
the vector of each name, and that of nothing, as the model's own region tokens say them. A step
costs a fraction of one with the language model in it, and no region is seen twice, so nothing is
learned by heart. Knows no questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from agent.training.batches import BACKGROUND, PADDING, PictureSettings, SceneBatch
from agent.training.connector import read_name_map, said_of_things
from agent.training.grounding import GroundingRecipe, GroundingSetup, batches_from
from agent.training.grounding_model import GroundingTraining, Pretrained
from agent.training.loop import CPU, LoopSettings, Objective, Terms, train
from agent.training.region_features import RegionPool, RegionsRecipe
from agent.training.vision import accuracy, likeness
from agent.training.workers import Figures

_FIRST_BATCH = 4_000_000


@dataclass(frozen=True)
class RefineRecipe:
    """How the eyes of a trained model go on learning."""

    loop: LoopSettings
    pictures: PictureSettings
    vocabulary_batches: int
    """Batches of regions from which what the language model reads is told."""
    label_smoothing: float
    length: float
    place: float
    """Weights of the losses beside that of the name, which is 1: a token's length, and what it
    says of its box."""

    def __post_init__(self) -> None:
        self.pictures.require_multiples_of(28)


@dataclass(frozen=True)
class Vocabulary:
    """What the language model reads in region tokens, less what they say of places."""

    vectors: Tensor
    """(num_classes + 1, hidden) of each name that is drawn, and of nothing, which is last."""
    lengths: Tensor
    """(2,) mean length of a token that names something, and of one that does not."""

    @classmethod
    @torch.no_grad()
    def read(cls, setup: GroundingSetup, pool: RegionPool) -> Vocabulary:
        """Read it off a model's own tokens of a pool of regions.

        Sets the module's map from names to slots, which is no part of a model directory.
        """
        module = setup.module
        read_name_map(module, pool)
        tokens = said_of_things(module, pool)
        named = pool.concepts >= 0
        names = module.name_vectors()[list(setup.concepts)]
        lengths = torch.stack([tokens[some].norm(dim=-1).mean() for some in (named, ~named)])
        return cls(torch.cat([names, tokens[~named].mean(0, keepdim=True)]), lengths)


def run(
    artwork: Path,
    directory: Path,
    pretrained: Pretrained,
    asked: GroundingRecipe,
    regions: RegionsRecipe,
    recipe: RefineRecipe,
    *,
    device: torch.device = CPU,
) -> None:
    """Train the eyes of a model directory, or go on training them, into `directory`."""
    torch.manual_seed(recipe.loop.seed)
    setup = GroundingSetup.load(artwork, pretrained, asked, device=device)
    directory.mkdir(parents=True, exist_ok=True)
    few = replace(regions, batches=recipe.vocabulary_batches)
    pool = setup.region_pool(directory / "regions.pt", few, with_beliefs=False)
    refine(setup, pool, recipe, directory)


def refine(setup: GroundingSetup, pool: RegionPool, recipe: RefineRecipe, directory: Path) -> None:
    """Train, or go on training, into `directory`.

    Args:
        pool: regions of the model as it is before; background among them.
    """
    module = setup.module
    vocabulary = Vocabulary.read(setup, pool)
    freeze_all_but_eyes(module)
    device = next(module.parameters()).device
    vectors, lengths = vocabulary.vectors.to(device), vocabulary.lengths.to(device)
    nothing = len(vectors) - 1
    settings = recipe.pictures.composed(setup.settings.artwork, setup.concepts)

    def batches(first: int, stride: int) -> Iterator[SceneBatch]:
        return batches_from(settings, _FIRST_BATCH + first, stride)

    def losses(batch: SceneBatch) -> tuple[Terms, Figures]:
        height, width = batch.rgb.shape[1:3]
        real = batch.classes > PADDING
        target = batch.classes[real].masked_fill(batch.classes[real] == BACKGROUND, nothing)
        with recipe.loop.autocast(device):
            fused, _ = module.fused(batch.rgb, batch.boxes)
            tokens = module.model.region_projector(fused[real]).float()
        size = torch.tensor([width, height] * 2, device=device)
        places = module.place_vectors(batch.boxes[real] / size)
        said = tokens - places
        close = likeness(said, vectors)
        # Cosines say nothing of the length, and a language model reads a short vector as nothing.
        meant = lengths[(target == nothing).long()]
        off = (said - vectors[target]) @ module.slots.place.T / lengths[0]
        named = target != nothing
        return {
            "name": nn.functional.cross_entropy(
                close, target, label_smoothing=recipe.label_smoothing
            ),
            "length": recipe.length * (said.norm(dim=-1) / meant - 1.0).square().mean(),
            "place": recipe.place * off.square().mean(),
        }, {"top1": accuracy(close[named, :nothing], target[named])}

    def counts(batch: SceneBatch) -> Figures:
        return dict.fromkeys(("name", "length", "place"), float((batch.classes > PADDING).sum()))

    train(module, Objective(batches, losses, counts=counts), recipe.loop, directory)


def freeze_all_but_eyes(module: GroundingTraining) -> None:
    """Towers, pyramid and connector learn; the language model does not."""
    module.requires_grad_(False)
    model = module.model
    assert model.primary_encoder is not None
    assert model.auxiliary_encoder is not None
    for part in (
        model.primary_encoder, model.auxiliary_encoder,
        model.region_encoder, model.region_projector,
    ):  # fmt: skip
        part.requires_grad_(True)
