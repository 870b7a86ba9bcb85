"""The two stages of VLM-FO1: alignment, then instruction tuning.

Stage 1 (paper, section 3.4) trains the region connector alone, everything pretrained being
frozen. Stage 2 also trains the language model and the feature pyramid, on proposals of the
proposal network, with questions about absent objects in the mixture. Pictures are composed ones,
or annotated ones of one's own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.errors import SettingsError
from agent.model.checkpoint import save_model
from agent.model.proposal_network import ProposalNetwork, save_proposal_network
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer
from agent.training.annotated_turns import AnnotatedRegions, annotated_turns
from agent.training.annotations import AnnotatedPictures, DataSource, load_pictures
from agent.training.answer_losses import (
    answer_counts,
    lm_loss,
    naming_loss,
    pointing_loss,
    token_accuracy,
)
from agent.training.artwork import load_concepts
from agent.training.batches import (
    BACKGROUND,
    PADDING,
    BatchSettings,
    PictureSettings,
    SceneBatch,
    batch_loader,
    nano_concepts,
)
from agent.training.connector import own_beliefs, read_name_map, warm_up_connector
from agent.training.grounding_model import GroundingTraining, Pretrained
from agent.training.loop import (
    CHECKPOINT,
    CPU,
    LoopSettings,
    Objective,
    Terms,
    load_module_state,
    moved,
    numpy_draws,
    train,
)
from agent.training.mixture import MixtureSettings, draw_turns
from agent.training.own_pictures import picture_loader
from agent.training.packing import PackedBatch, PackedScene, collate_packed
from agent.training.region_features import (
    RegionPool,
    RegionsRecipe,
    classify,
    no_beliefs,
    proposed_boxes,
    region_pool,
)
from agent.training.region_probe import held_out_beliefs
from agent.training.rehearsal import RehearsalSettings, rehearse
from agent.training.workers import Figures, Workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroundingRecipe:
    """A stage of the paper."""

    loop: LoopSettings
    pictures: PictureSettings
    mixture: MixtureSettings
    num_turns: int
    """Questions per picture."""
    proposed: bool
    """Whether regions are what the proposal network finds, or the true boxes, jittered."""
    contrast: float
    pointing: float
    naming: float
    """Weights of the losses beside that of the answers, which is 1."""
    data: tuple[DataSource, ...]
    """Pictures of one's own in place of composed ones."""
    expression_share: float
    """Of the questions about something present: how many are an annotator's own words, in pictures
    that have some."""

    def __post_init__(self) -> None:
        self.pictures.require_multiples_of(28)


@dataclass(frozen=True)
class AlignRecipe(GroundingRecipe):
    """Stage 1."""

    warm_up_steps: int
    """Of the connector, on the pool of regions, before `loop`; composed pictures only."""


@dataclass(frozen=True)
class InstructRecipe(GroundingRecipe):
    """Stage 2."""

    rehearsal: RehearsalSettings
    """Questions about regions of the pool, before `loop`; composed pictures only."""


@dataclass(frozen=True)
class GroundingSetup:
    """What both stages, and experiments with them, start from."""

    module: GroundingTraining
    builder: SequenceBuilder
    names: list[str]
    """Of all concepts."""
    concepts: tuple[int, ...]
    """Ids of those that are drawn, in the order of a batch's classes."""
    settings: BatchSettings
    pretrained: Pretrained
    own: AnnotatedPictures | None = None
    """Pictures of one's own, whose names are the concepts."""

    @classmethod
    def load(
        cls,
        artwork: Path,
        pretrained: Pretrained,
        recipe: GroundingRecipe,
        start_from: Path | None = None,
        *,
        device: torch.device = CPU,
    ) -> GroundingSetup:
        """The model from its pretrained parts, or as an earlier stage left it.

        Raises:
            SourceError: data or a checkpoint cannot be read.
        """
        own = load_pictures(recipe.data) if recipe.data else None
        if own is None:
            concepts = nano_concepts()
            names = [concept.label for concept in load_concepts()]
        else:
            concepts, names = tuple(range(len(own.names))), list(own.names)
        tokenizer = pretrained.tokenizer()
        module = GroundingTraining(tokenizer, names)
        module.load_pretrained(pretrained)
        if start_from is not None:
            module.load_state_dict(load_module_state(start_from))
        settings = recipe.pictures.composed(artwork, concepts)
        builder = SequenceBuilder(tokenizer)
        return cls(module.to(device), builder, names, concepts, settings, pretrained, own)

    @property
    def concept_of(self) -> Tensor:
        """Concept id by a batch's class; the two negative classes are themselves."""
        return torch.tensor([*self.concepts, PADDING, BACKGROUND])

    @property
    def vocabulary(self) -> list[str]:
        """Names that are drawn, and asked for when something absent is wanted."""
        return [self.names[c] for c in self.concepts]

    def batches(self, first: int, stride: int) -> Iterator[SceneBatch]:
        """Batches of pictures that no pretraining stage has seen."""
        if self.own is None:
            return batches_from(self.settings, first, stride)
        ranks = {name: rank for rank, name in enumerate(self.own.names)}
        return iter(picture_loader(self.own, ranks, self.settings, first=first, stride=stride))

    def region_pool(
        self, cache: Path, recipe: RegionsRecipe, *, with_beliefs: bool = True
    ) -> RegionPool:
        """Regions of pictures as they will be asked about: larger, with every camera fault.

        Both stages learn from the same; computed once, then read from `cache`.

        Args:
            with_beliefs: let a classifier judge them; not needed where the model does so itself.
        """
        with Workers.current().leader_first():
            if cache.is_file():
                return RegionPool.load(cache)
            device = next(self.module.parameters()).device
            pool = region_pool(
                self.module,
                self.pool_batches(recipe),
                self.pretrained.network().to(device),
                self.concept_of,
                self._believe if with_beliefs else no_beliefs,
                recipe,
            )
            pool.save(cache)
            return pool

    def as_it_is_read(self, pool: RegionPool) -> RegionPool:
        """A pool with the doubts of the model's own connector, which knows more than a probe.

        Sets the module's map from names to slots, which is no part of a model directory.
        """
        read_name_map(self.module, pool)
        return replace(pool, believed=own_beliefs(self.module, pool, torch.tensor(self.concepts)))

    def pool_batches(self, recipe: RegionsRecipe) -> Iterator[SceneBatch]:
        """The pictures that the pool of regions is made of."""
        settings = recipe.pictures.composed(self.settings.artwork, self.concepts)
        return batches_from(settings, 2_000_000)

    def _believe(self, features: Tensor, classes: Tensor) -> Tensor:
        """What the vision stage's classifier thinks; a model directory has none, so one is fit."""
        if self.pretrained.model is not None:
            return held_out_beliefs(features, classes, len(self.concepts))
        return classify(features, load_module_state(self.pretrained.vision))


@dataclass(frozen=True)
class Asked:
    """A batch of pictures with questions about regions, in random order."""

    rgb: Tensor
    boxes: Tensor
    """(batch, most regions, 4) pixels."""
    concepts: Tensor
    """(batch, most regions) ids; BACKGROUND, or PADDING where there is no region."""
    packed: PackedBatch


class GroundingStage:
    """One stage's questions and losses."""

    def __init__(
        self, setup: GroundingSetup, recipe: GroundingRecipe, network: ProposalNetwork | None
    ) -> None:
        self._setup, self._recipe, self._network = setup, recipe, network
        self._device = next(setup.module.parameters()).device
        self._concept_of = setup.concept_of.to(self._device)
        # The name map is no part of a model directory, and without it nothing can be contrasted.
        self._contrasts = recipe.contrast > 0.0 and setup.pretrained.model is None

    def objective(self) -> Objective[Asked]:
        """What the loop needs."""
        return Objective(self._setup.batches, self.losses, self.ask, self.counts)

    @torch.no_grad()
    def ask(self, batch: SceneBatch) -> Asked:
        """Choose regions, and draw questions about them."""
        rng = numpy_draws()
        boxes, classes = batch.boxes, batch.classes
        if self._network is not None:
            boxes, classes = proposed_boxes(self._network, batch)
        boxes, classes = shuffled(boxes, classes, rng)
        concepts = self._concept_of[classes]
        packed = self._pack(batch, boxes.cpu(), concepts.cpu(), rng)
        return Asked(batch.rgb, boxes, concepts, moved(packed, self._device))

    def _pack(
        self, batch: SceneBatch, boxes: Tensor, concepts: Tensor, rng: np.random.Generator
    ) -> PackedBatch:
        """Questions about every picture of a batch, in the service's prompt."""
        setup, recipe = self._setup, self._recipe
        height, width = batch.rgb.shape[1:3]
        grid = (height // 28, width // 28)
        scenes = []
        for row, (places, ids) in enumerate(zip(boxes, concepts, strict=True)):
            here = ids > PADDING
            pixels, known = places[here].numpy(), ids[here].numpy()
            relative = pixels / np.array([width, height] * 2, dtype=np.float32)
            names = [setup.names[c] if c >= 0 else None for c in known]
            if batch.said is None:
                turns = draw_turns(
                    names, setup.vocabulary, recipe.num_turns, rng, relative, recipe.mixture
                )
            else:
                truth = batch.truth[row].cpu().numpy()
                shown = AnnotatedRegions(names, pixels, relative, truth, batch.said[row])
                turns = annotated_turns(
                    shown, setup.vocabulary, recipe.num_turns, rng, recipe.mixture,
                    expression_share=recipe.expression_share,
                )  # fmt: skip
            scenes.append(PackedScene.questions(setup.builder, known, turns, grid, relative))
        return collate_packed(scenes)

    def losses(self, asked: Asked) -> tuple[Terms, Figures]:
        """Answers, attention and, where names have vectors, the region tokens themselves."""
        recipe, module, packed = self._recipe, self._setup.module, asked.packed
        real = asked.concepts > PADDING
        with recipe.loop.autocast(self._device):
            regions, image = module.features(asked.rgb, asked.boxes)
            logits, attention = module(packed, regions[real], image.flatten(0, 1))
        terms = {
            "lm": lm_loss(logits, packed.labels),
            "pointing": recipe.pointing * pointing_loss(attention, packed),
            "naming": recipe.naming * naming_loss(attention, packed),
        }
        named = asked.concepts[real] >= 0
        if self._contrasts and bool(named.any()):
            places = module.place_vectors(packed.boxes)
            contrast = module.contrast((regions[real] - places)[named], asked.concepts[real][named])
            terms["contrast"] = recipe.contrast * contrast
        return terms, {"token": token_accuracy(logits.detach(), packed.labels)}

    def counts(self, asked: Asked) -> Figures:
        """What each loss is a mean over."""
        return {**answer_counts(asked.packed), "contrast": float((asked.concepts >= 0).sum())}


def run(
    artwork: Path,
    directory: Path,
    pretrained: Pretrained,
    recipe: AlignRecipe | InstructRecipe,
    regions: RegionsRecipe,
    *,
    start_from: Path | None = None,
    device: torch.device = CPU,
) -> None:
    """Train a stage into `directory`: alignment or instruction tuning, as the recipe is.

    Raises:
        SettingsError: pictures of one's own and no step to train on them.
        SourceError: data or a checkpoint cannot be read.
    """
    stage = "align" if isinstance(recipe, AlignRecipe) else "instruct"
    if recipe.data and recipe.loop.steps < 1:
        raise SettingsError(f"{stage}.loop.steps is {recipe.loop.steps}: say how many (--steps)")
    _require_same_data(directory, recipe)
    torch.manual_seed(recipe.loop.seed)
    setup = GroundingSetup.load(artwork, pretrained, recipe, start_from, device=device)
    freeze_for(setup.module, stage)
    if not recipe.data and not (directory / CHECKPOINT).is_file():
        _learn_from_pool(setup, recipe, regions, directory)
    network = pretrained.network().to(device) if recipe.proposed else None
    train(setup.module, GroundingStage(setup, recipe, network).objective(), recipe.loop, directory)


def _require_same_data(directory: Path, recipe: GroundingRecipe) -> None:
    """A stage goes on with the pictures it began with."""
    note = directory / "data.json"
    data = [asdict(source) for source in recipe.data]
    if (directory / CHECKPOINT).is_file():
        began = json.loads(note.read_text()) if note.is_file() else []
        if began != data:
            raise SettingsError(
                f"{directory} holds a training on other pictures; choose another --directory"
            )
    elif Workers.current().leads:
        directory.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(data))


def _learn_from_pool(
    setup: GroundingSetup,
    recipe: AlignRecipe | InstructRecipe,
    regions: RegionsRecipe,
    directory: Path,
) -> None:
    """The quick part of a stage: on features that are computed once."""
    trained = torch.tensor(setup.concepts)
    knows = setup.pretrained.model is not None
    # A base's regions are no other training's, whose stages share theirs.
    cache = (directory if knows else directory.parent) / "regions.pt"
    if isinstance(recipe, AlignRecipe) and recipe.warm_up_steps and not knows:
        pool = setup.region_pool(cache, regions)
        warm_up_connector(
            setup.module, pool, trained, steps=recipe.warm_up_steps,
            precision=recipe.loop.precision,
        )  # fmt: skip
    if isinstance(recipe, InstructRecipe) and recipe.rehearsal.loop.steps:
        pool = setup.region_pool(cache, regions, with_beliefs=not knows)
        if knows:
            pool = setup.as_it_is_read(pool)
        rehearse(
            setup.module, setup.builder, pool, setup.names, setup.vocabulary, trained,
            recipe.rehearsal, directory / "rehearsal", mixture=recipe.mixture,
        )  # fmt: skip


def batches_from(settings: BatchSettings, start: int, stride: int = 1) -> Iterator[SceneBatch]:
    """Scenes no pretraining stage has seen: counted from far beyond theirs."""
    return iter(batch_loader(settings, start=10_000_000 + start, stride=stride))


def freeze_for(module: GroundingTraining, stage: str) -> None:
    """Stage 1 trains the connector; stage 2 also the language model and the pyramid."""
    module.requires_grad_(False)
    model = module.model
    model.region_projector.requires_grad_(True)
    if stage == "instruct":
        model.region_encoder.requires_grad_(True)
        assert model.language_model is not None
        model.language_model.requires_grad_(True)


def shuffled(boxes: Tensor, classes: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Real boxes first in random order, so that a region's number says nothing of its class."""
    order = torch.stack(
        [
            torch.from_numpy(np.lexsort((rng.random(classes.shape[1]), row.numpy() == PADDING)))
            for row in classes.cpu()
        ]
    ).to(boxes.device)
    return boxes.gather(1, order[..., None].expand(-1, -1, 4)), classes.gather(1, order)


def export(stage: Path, pretrained: Pretrained, directory: Path) -> None:
    """Write the trained model as a model directory, weights in bfloat16."""
    tokenizer = pretrained.tokenizer()
    # Names are no part of the model: any list of them will do.
    module = GroundingTraining(tokenizer, [concept.label for concept in load_concepts()])
    module.load_state_dict(load_module_state(stage))
    save_grounding(module, tokenizer, pretrained, directory)
    logger.info("wrote %s", directory)


def save_grounding(
    module: GroundingTraining, tokenizer: PromptTokenizer, pretrained: Pretrained, directory: Path
) -> None:
    """Write a model in training, and its proposal network, as a model directory."""
    save_model(module.model, directory, dtype=torch.bfloat16)
    tokenizer.save(directory)
    save_proposal_network(pretrained.network(), directory / "proposal", dtype=torch.bfloat16)
