"""The two stages of VLM-FO1 on composed scenes: alignment, then instruction tuning.

Stage 1 (paper, section 3.4) trains the region connector alone, everything pretrained being
frozen. Stage 2 also trains the language model and the feature pyramid, on proposals of the
proposal network, with questions about absent objects in the mixture.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.model.checkpoint import save_model
from agent.model.proposal_network import save_proposal_network
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer
from agent.training.artwork import load_concepts
from agent.training.batches import (
    BACKGROUND,
    PADDING,
    BatchSettings,
    SceneBatch,
    batch_loader,
    nano_concepts,
)
from agent.training.connector import warm_up_connector
from agent.training.grounding_model import (
    GroundingTraining,
    Pretrained,
    load_proposals,
)
from agent.training.language import lm_loss, naming_loss, pointing_loss, token_accuracy
from agent.training.loop import CHECKPOINT, LoopSettings, load_module_state, train
from agent.training.mixture import draw_turns
from agent.training.packing import PackedBatch, PackedScene, collate_packed
from agent.training.region_features import RegionPool, proposed_boxes, region_pool
from agent.training.rehearsal import NUM_TURNS, rehearse
from agent.training.scenes import SceneSettings

logger = logging.getLogger(__name__)
_WARM_UP_STEPS = 3000


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

    @classmethod
    def load(
        cls, artwork: Path, pretrained: Pretrained, start_from: Path | None = None
    ) -> GroundingSetup:
        """The model from its pretrained parts, or as an earlier stage left it."""
        concepts = nano_concepts()
        names = [concept.label for concept in load_concepts()]
        tokenizer = PromptTokenizer.from_directory(pretrained.language)
        module = GroundingTraining(tokenizer, names)
        module.load_pretrained(pretrained)
        if start_from is not None:
            module.load_state_dict(load_module_state(start_from))
        settings = BatchSettings(
            artwork=artwork,
            scenes=SceneSettings(concepts=concepts, num_objects=(2, 26), object_px=(18.0, 110.0)),
            batch_size=8,
            sizes=((224, 224), (252, 196), (280, 224), (224, 280), (336, 280)),
        )
        return cls(module, SequenceBuilder(tokenizer), names, concepts, settings, pretrained)

    @property
    def concept_of(self) -> Tensor:
        """Concept id by a batch's class; the two negative classes are themselves."""
        return torch.tensor([*self.concepts, PADDING, BACKGROUND])

    @property
    def vocabulary(self) -> list[str]:
        """Names that are drawn, and asked for when something absent is wanted."""
        return [self.names[c] for c in self.concepts]

    def region_pool(self, cache: Path) -> RegionPool:
        """Regions of pictures as they will be asked about: larger, with every camera fault.

        Both stages learn from the same; computed once, then read from `cache`.
        """
        if cache.is_file():
            return RegionPool.load(cache)
        scenes = SceneSettings(concepts=self.concepts, num_objects=(6, 32))
        sizes = ((224, 224), (280, 252), (336, 280), (308, 364), (420, 336))
        wild = batches_from(replace(self.settings, scenes=scenes, sizes=sizes), 2_000_000)
        network = load_proposals(self.pretrained.proposals)
        classifier = load_module_state(self.pretrained.vision)
        pool = region_pool(self.module, wild, network, self.concept_of, classifier)
        pool.save(cache)
        return pool


def run(
    artwork: Path,
    directory: Path,
    pretrained: Pretrained,
    *,
    stage: str,
    steps: int,
    start_from: Path | None = None,
    rate: float = 1e-3,
    rehearsal_steps: int = 0,
) -> None:
    """Train `stage` ("align" or "instruct") into `directory`."""
    torch.manual_seed(0)
    setup = GroundingSetup.load(artwork, pretrained, start_from)
    module, names, concept_of = setup.module, setup.names, setup.concept_of
    freeze_for(module, stage)
    network = load_proposals(pretrained.proposals) if stage == "instruct" else None
    rng = np.random.default_rng(5)

    def step(batch: SceneBatch) -> tuple[Tensor, dict[str, float]]:
        boxes, classes = batch.boxes, batch.classes
        if network is not None:
            boxes, classes = proposed_boxes(network, batch)
        boxes, classes = shuffled(boxes, classes, rng)
        real = classes > -2
        with torch.autocast("cpu", torch.bfloat16):
            regions, image = module.features(batch.rgb, boxes)
            ids = concept_of[classes]
            packed = pack(setup.builder, ids, boxes, real, names, setup.vocabulary,
                          batch.rgb.shape[1:3], rng)  # fmt: skip
            logits, attention = module(packed, regions[real], image.flatten(0, 1))
        named = ids[real] >= 0
        places = module.place_vectors(packed.boxes)
        contrast = module.contrast((regions[real] - places)[named], ids[real][named])
        loss = lm_loss(logits, packed.labels)
        pointing = pointing_loss(attention, packed)
        named_well = naming_loss(attention, packed)
        total = loss + (1.0 if stage == "align" else 0.3) * contrast
        total = total + 0.3 * pointing + 0.3 * named_well
        return total, {
            "lm": float(loss.detach()),
            "pointing": float(pointing.detach()),
            "contrast": float(contrast.detach()),
            "token": token_accuracy(logits.detach(), packed.labels),
        }

    is_fresh = not (directory / CHECKPOINT).is_file()
    trained, cache = torch.tensor(setup.concepts), directory.parent / "regions.pt"
    if stage == "align" and is_fresh:
        warm_up_connector(module, setup.region_pool(cache), trained, steps=_WARM_UP_STEPS)
    if stage == "instruct" and rehearsal_steps and is_fresh:
        rehearse(
            module, setup.builder, setup.region_pool(cache), names, setup.vocabulary, trained,
            steps=rehearsal_steps, rate=1.5e-3,
        )  # fmt: skip
    loop = LoopSettings(steps=steps, learning_rate=rate, warmup_steps=30, weight_decay=0.01,
                        decay_share=0.4, save_every=50)  # fmt: skip
    train(module, step, lambda start: batches_from(setup.settings, start), loop, directory)


def batches_from(settings: BatchSettings, start: int) -> Iterator[SceneBatch]:
    """Scenes no pretraining stage has seen: counted from far beyond theirs."""
    return iter(batch_loader(settings, start=10_000_000 + start))


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
            torch.from_numpy(np.lexsort((rng.random(classes.shape[1]), (row == -2).numpy())))
            for row in classes
        ]
    )
    return boxes.gather(1, order[..., None].expand(-1, -1, 4)), classes.gather(1, order)


def pack(
    builder: SequenceBuilder,
    ids: Tensor,
    boxes: Tensor,
    real: Tensor,
    names: list[str],
    vocabulary: list[str],
    size: tuple[int, ...],
    rng: np.random.Generator,
) -> PackedBatch:
    """Questions about every scene of a batch, in the service's prompt."""
    grid = (size[0] // 28, size[1] // 28)
    scenes = []
    relative = (boxes / torch.tensor([size[1], size[0]] * 2)).numpy()
    for row, places, present in zip(ids, relative, real, strict=True):
        concepts, places = row[present].numpy(), places[present.numpy()]
        called = [names[c] if c >= 0 else None for c in concepts]
        turns = draw_turns(called, vocabulary, NUM_TURNS, rng, places)
        scenes.append(PackedScene.questions(builder, concepts, turns, grid, places))
    return collate_packed(scenes)


def export(stage: Path, pretrained: Pretrained, directory: Path) -> None:
    """Write the trained model as a model directory, weights in bfloat16."""
    tokenizer = PromptTokenizer.from_directory(pretrained.language)
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
    network = load_proposals(pretrained.proposals)
    save_proposal_network(network, directory / "proposal", dtype=torch.bfloat16)
