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
from torch import Tensor, nn

from agent.detections import box_iou, centred_to_corners, select_proposals
from agent.model.checkpoint import save_model
from agent.model.configuration import nano_config
from agent.model.language_model import SlotType
from agent.model.proposal_network import (
    ProposalNetwork,
    nano_proposal_config,
    save_proposal_network,
)
from agent.model.vlm_fo1 import VLMFO1
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer
from agent.training.artwork import load_concepts
from agent.training.batches import BatchSettings, SceneBatch, batch_loader, nano_concepts
from agent.training.language import (
    VOCAB_SIZE,
    NameSlots,
    attended_logits,
    lm_loss,
    naming_loss,
    pointing_loss,
    token_accuracy,
)
from agent.training.loop import LoopSettings, train
from agent.training.mixture import draw_turns
from agent.training.packing import PackedBatch, PackedScene, collate_packed
from agent.training.scenes import SceneSettings
from agent.training.vision import IMAGENET, encode_batch, normalise_batch

logger = logging.getLogger(__name__)
_NUM_TURNS = 6
_REHEARSED_SCENES = 8
_WARM_UP_BATCHES = 260
_WARM_UP_STEPS = 2000
_POOL_BATCHES = 500
_CONNECTOR_SHARE = 0.2
"""The connector's learning rate during rehearsal, relative to the language model's."""


@dataclass(frozen=True)
class Pretrained:
    """Folders of the three pretraining stages (each holds a checkpoint.pt)."""

    vision: Path
    language: Path
    proposals: Path


class GroundingTraining(nn.Module):
    """The whole model with a contrast between region tokens and the names' embeddings."""

    def __init__(self, tokenizer: PromptTokenizer, names: list[str]) -> None:
        super().__init__()
        self.model = VLMFO1(nano_config(VOCAB_SIZE))
        assert self.model.language_model is not None
        assert self.model.auxiliary_encoder is not None
        self.model.auxiliary_encoder.tower.set_attn_implementation("eager")
        self.model.language_model.model.set_attn_implementation("eager")
        self.slots = NameSlots(tokenizer, names, self.model.config.text.hidden_size)

    def load_pretrained(self, pretrained: Pretrained) -> None:
        """Take over the towers, the pyramid and the language model."""
        vision = load_module_state(pretrained.vision)
        language = load_module_state(pretrained.language)
        state = {k.removeprefix("model."): v for k, v in vision.items() if k.startswith("model.")}
        state |= {k: v for k, v in language.items() if k.startswith("language_model.")}
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert all(name.startswith("region_projector.") for name in missing), missing
        slots = {k.removeprefix("slots."): v for k, v in language.items() if k.startswith("slots.")}
        self.slots.load_state_dict(slots)
        # The connector's first layer comes from the towers' classifier; a fresh one would learn
        # the few thousand regions of alignment by heart.
        first = self.model.get_submodule("region_projector.0")
        first.load_state_dict({k: vision[f"connector.0.{k}"] for k in ("weight", "bias")})

    def fused(self, rgb: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Fused region features (batch, num_boxes, region_width) and raw image tokens."""
        primary, auxiliary, image = encode_batch(self.model, rgb, boxes)
        height, width = rgb.shape[1:3]
        size = torch.tensor([width, height, width, height])
        return self.model.region_encoder.fuse(primary, auxiliary, boxes / size), image

    def features(self, rgb: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Region tokens (batch, num_boxes, hidden) and image tokens (batch, tokens, hidden)."""
        fused, image = self.fused(rgb, boxes)
        return self.model.region_projector(fused), self.model.image_projector(image)

    def forward(self, batch: PackedBatch, regions: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token logits of packed questions and the pointer layer's attention.

        Args:
            regions: (total regions, hidden) in scene order; image: (total image tokens, hidden).
        """
        language = self.model.language_model
        assert language is not None
        embeddings = language.embed(batch.ids)
        for slot, values in ((SlotType.REGION, regions), (SlotType.IMAGE, image)):
            here = (batch.slots == slot)[..., None]
            embeddings = embeddings.masked_scatter(here, values.to(embeddings.dtype))
        return attended_logits(language, embeddings, batch)

    def name_vectors(self) -> Tensor:
        """(num_names, hidden): what the language model expects in the slot of each name."""
        language = self.model.language_model
        assert language is not None
        everything = torch.arange(len(self.slots.table))
        vectors: Tensor = self.slots(language.model.embed_tokens, everything)
        return vectors

    def contrast(self, regions: Tensor, concepts: Tensor) -> Tensor:
        """Cross entropy of each region token against the slot vectors of all names.

        Pulls a region's token to where the language model looks for its name; the LM itself
        is not needed for that, so alignment takes minutes.
        """
        table = self.name_vectors()
        scaled = nn.functional.normalize(regions.float(), dim=-1) * 16.0
        similarity = scaled @ nn.functional.normalize(table.float(), dim=-1).T
        return nn.functional.cross_entropy(similarity, concepts)


def load_module_state(directory: Path) -> dict[str, Tensor]:
    """The module's weights in a stage's checkpoint."""
    state = torch.load(directory / "checkpoint.pt", weights_only=True)["module"]
    assert isinstance(state, dict)
    return state


def load_proposals(directory: Path) -> ProposalNetwork:
    """The trained proposal network, for inference."""
    network = ProposalNetwork(nano_proposal_config())
    network.load_state_dict(load_module_state(directory))
    return network.eval().requires_grad_(False)


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
    for row, (box, score) in enumerate(zip(centred.numpy(), scores.numpy(), strict=True)):
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
        objects = batch.classes[row] >= 0
        truth = batch.truth[row][objects].numpy()
        found = np.full(len(kept), -1)
        if len(kept) and len(truth):
            overlap = box_iou(kept, truth)
            best = overlap.argmax(axis=1)
            hit = overlap.max(axis=1) >= 0.5
            found[hit] = batch.classes[row][objects].numpy()[best[hit]]
        all_boxes[row, : len(kept)] = kept
        classes[row, : len(kept)] = found
    return torch.from_numpy(all_boxes), torch.from_numpy(classes)


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
    concepts = nano_concepts()
    names = [concept.label for concept in load_concepts()]
    tokenizer = PromptTokenizer.from_directory(pretrained.language)
    builder = SequenceBuilder(tokenizer)
    module = GroundingTraining(tokenizer, names)
    module.load_pretrained(pretrained)
    if start_from is not None:
        module.load_state_dict(load_module_state(start_from))
    freeze_for(module, stage)
    network = load_proposals(pretrained.proposals) if stage == "instruct" else None
    settings = BatchSettings(
        artwork=artwork,
        scenes=SceneSettings(
            concepts=concepts,
            num_objects=(2, 26),
            object_px=(18.0, 110.0),
            restyle_probability=0.45,
            degrade_probability=0.5,
        ),
        batch_size=8,
        sizes=((224, 224), (252, 196), (280, 224), (224, 280), (336, 280)),
    )
    rng = np.random.default_rng(5)
    concept_of = torch.tensor([*concepts, -2, -1])  # indexed by class; -2 pads, -1 is background

    def step(batch: SceneBatch) -> tuple[Tensor, dict[str, float]]:
        boxes, classes = batch.boxes, batch.classes
        if network is not None:
            boxes, classes = proposed_boxes(network, batch)
        boxes, classes = shuffled(boxes, classes, rng)
        real = classes > -2
        with torch.autocast("cpu", torch.bfloat16):
            regions, image = module.features(batch.rgb, boxes)
            ids = concept_of[classes]
            packed = pack(builder, ids, real, names, [names[c] for c in concepts],
                          batch.rgb.shape[1:3], rng)  # fmt: skip
            logits, attention = module(packed, regions[real], image.flatten(0, 1))
        named = ids[real] >= 0
        contrast = module.contrast(regions[real][named], ids[real][named])
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

    if stage == "align" and not (directory / "checkpoint.pt").is_file():
        dense = replace(
            settings,
            batch_size=16,
            sizes=((224, 224), (196, 224), (224, 196)),
            scenes=replace(settings.scenes, num_objects=(14, 40)),
        )
        warm_up_connector(
            module,
            batches_from(dense, 1_000_000),
            torch.tensor(concepts),
            load_module_state(pretrained.vision),
            steps=_WARM_UP_STEPS,
        )
    if stage == "instruct" and rehearsal_steps and not (directory / "checkpoint.pt").is_file():
        assert network is not None
        crowds = replace(settings.scenes, num_objects=(10, 36))
        pool = region_pool(
            module, batches_from(replace(settings, scenes=crowds), 2_000_000), network, concept_of
        )
        vocabulary = [names[c] for c in concepts]
        rehearse(module, builder, pool, names, vocabulary, steps=rehearsal_steps, rate=1.5e-3)
    loop = LoopSettings(steps=steps, learning_rate=rate, warmup_steps=30, weight_decay=0.01,
                        decay_share=0.4, save_every=50)  # fmt: skip
    train(module, step, lambda start: batches_from(settings, start), loop, directory)


@torch.no_grad()
def fused_regions(
    module: GroundingTraining, batches: Iterator[SceneBatch], count: int
) -> tuple[Tensor, Tensor]:
    """Fused features (regions, region_width) and classes of the boxes of `count` batches."""
    fused, classes = [], []
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(count):
            batch = next(batches)
            joined, _ = module.fused(batch.rgb, batch.boxes)
            real = batch.classes > -2
            fused.append(joined[real].float())
            classes.append(batch.classes[real])
    return torch.cat(fused), torch.cat(classes)


def warm_up_connector(
    module: GroundingTraining,
    batches: Iterator[SceneBatch],
    concepts: Tensor,
    vision: dict[str, Tensor],
    *,
    steps: int,
) -> None:
    """Train the connector on fused features that are computed once, from the towers' classifier.

    Everything before the connector is frozen, so a few hundred batches serve thousands of steps.
    The classifier's doubts are the targets: hard labels would be learned by heart. A token is
    pulled to the mixture of slot vectors that the classifier believes in, nothing for background.
    A tenth of the regions is held out and logged.
    """
    connector = module.model.region_projector
    features, labels = fused_regions(module, batches, _WARM_UP_BATCHES)
    believed = classify(features, vision)
    names = module.name_vectors().detach()
    mixture = believed[:, :-1] @ names[concepts]
    split = len(features) * 9 // 10
    held_out = torch.arange(split, len(features))[labels[split:] >= 0]
    directions = nn.functional.normalize(names, dim=-1)
    optimizer = torch.optim.AdamW(connector.parameters(), lr=2e-3, weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1.0 - step / steps)
        rows = torch.randint(split, (1024,))
        with torch.autocast("cpu", torch.bfloat16):
            tokens = connector(features[rows]).float()
        similarity = 16.0 * nn.functional.normalize(tokens, dim=-1) @ directions[concepts].T
        foreground = believed[rows, :-1]
        contrast = -(foreground * similarity.log_softmax(-1)).sum() / foreground.sum()
        loss = contrast + nn.functional.mse_loss(tokens, mixture[rows]) / names.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 0 or step + 1 == steps:
            with torch.no_grad():
                found = (connector(features[held_out]) @ directions.T).argmax(-1)
                right = (found == concepts[labels[held_out]]).float().mean()
            logger.info("connector step %d: contrast %.3f, held-out top-1 %.3f of %d names",
                        step, float(contrast.detach()), float(right), len(names))  # fmt: skip
    # Doubt shortens a mixture, and the language model would read a short vector as nothing.
    with torch.no_grad():
        length = connector(features[held_out]).norm(dim=-1).mean()
        for parameter in module.model.get_submodule("region_projector.2").parameters():
            parameter.mul_(names.norm(dim=-1).mean() / length)


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


@dataclass(frozen=True)
class RegionPool:
    """Fused region features of many scenes, computed once."""

    features: Tensor
    """(regions, region_width)."""
    concepts: Tensor
    """(regions,) concept id, -1 for background."""


@torch.no_grad()
def region_pool(
    module: GroundingTraining,
    batches: Iterator[SceneBatch],
    network: ProposalNetwork,
    concept_of: Tensor,
) -> RegionPool:
    """Regions around true boxes and, every other batch, around what the OPN proposes.

    A proposal that covers an object badly counts as background, so that the model learns to
    leave it out.
    """

    def proposed(stream: Iterator[SceneBatch]) -> Iterator[SceneBatch]:
        for number, batch in enumerate(stream):
            if number % 2:
                boxes, classes = proposed_boxes(network, batch)
                batch = replace(batch, boxes=boxes, classes=classes)
            yield batch

    features, classes = fused_regions(module, proposed(batches), _POOL_BATCHES)
    return RegionPool(features, concept_of[classes])


def rehearse(
    module: GroundingTraining,
    builder: SequenceBuilder,
    pool: RegionPool,
    names: list[str],
    vocabulary: list[str],
    *,
    steps: int,
    rate: float,
) -> None:
    """Teach the language model to read real region tokens in scenes shuffled together from a pool.

    The towers are frozen, so no picture is needed: a scene is a random handful of regions. This
    gives the language model ten times the questions that the towers' speed would allow. The
    connector learns along, slowly: it could learn the pool by heart. A twentieth of the pool is
    held out and logged.
    """
    rng = np.random.default_rng(11)
    language, connector = module.model.language_model, module.model.region_projector
    assert language is not None
    optimizer = torch.optim.AdamW(
        [{"params": list(language.parameters()), "share": 1.0},
         {"params": list(connector.parameters()), "share": _CONNECTOR_SHARE}],
        lr=rate, betas=(0.9, 0.98),
    )  # fmt: skip
    held_out = len(pool.features) * 19 // 20

    def losses(first: int, last: int) -> tuple[Tensor, dict[str, float]]:
        packed, rows = rehearsal_batch(builder, pool.concepts, names, vocabulary, rng, first, last)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = connector(pool.features[rows])
            num_image = int((packed.slots == SlotType.IMAGE).sum())
            image = torch.randn(num_image, tokens.shape[-1])
            logits, attention = module(packed, tokens, image)
        named = pool.concepts[rows] >= 0
        lm, pointing = lm_loss(logits, packed.labels), pointing_loss(attention, packed)
        naming = naming_loss(attention, packed)
        contrast = module.contrast(tokens[named], pool.concepts[rows][named])
        total = lm + 0.3 * pointing + 0.3 * naming + 0.1 * contrast
        return total, {
            "lm": float(lm.detach()),
            "pointing": float(pointing.detach()),
            "naming": float(naming.detach()),
            "contrast": float(contrast.detach()),
            "token": token_accuracy(logits.detach(), packed.labels),
        }

    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"] * min(1.0, (step + 1) / 30) * (1.0 - step / steps)
        loss, _ = losses(0, held_out)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step + 1 == steps:
            with torch.no_grad():
                _, figures = losses(held_out, len(pool.features))
            logger.info("rehearsal step %d, held out: %s", step,
                        {name: round(value, 3) for name, value in figures.items()})  # fmt: skip


def rehearsal_batch(
    builder: SequenceBuilder,
    concepts: Tensor,
    names: list[str],
    vocabulary: list[str],
    rng: np.random.Generator,
    first: int,
    last: int,
) -> tuple[PackedBatch, Tensor]:
    """Questions about scenes of regions drawn from rows `first` to `last`, and those rows."""
    scenes, chosen = [], []
    for _ in range(_REHEARSED_SCENES):
        count = int(rng.integers(3, 20 if rng.random() < 0.7 else 48))
        rows = rng.integers(first, last, size=count)
        # Some concepts stand there twice.
        rows = np.concatenate([rows, rng.choice(rows, size=len(rows) // 8)])
        here = concepts[torch.from_numpy(rows)].numpy()
        called = [names[c] if c >= 0 else None for c in here]
        turns = draw_turns(called, vocabulary, _NUM_TURNS, rng)
        grid = (int(rng.integers(5, 11)), int(rng.integers(5, 11)))
        scenes.append(PackedScene.questions(builder, here, turns, grid))
        chosen.append(torch.from_numpy(rows))
    return collate_packed(scenes), torch.cat(chosen)


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
    real: Tensor,
    names: list[str],
    vocabulary: list[str],
    size: tuple[int, ...],
    rng: np.random.Generator,
) -> PackedBatch:
    """Questions about every scene of a batch, in the service's prompt."""
    grid = (size[0] // 28, size[1] // 28)
    scenes = []
    for row, present in zip(ids, real, strict=True):
        concepts = row[present].numpy()
        called = [names[c] if c >= 0 else None for c in concepts]
        scenes.append(
            PackedScene.questions(
                builder, concepts, draw_turns(called, vocabulary, _NUM_TURNS, rng), grid
            )
        )
    return collate_packed(scenes)


def export(stage: Path, pretrained: Pretrained, directory: Path) -> None:
    """Write the trained model as a model directory, weights in bfloat16."""
    tokenizer = PromptTokenizer.from_directory(pretrained.language)
    module = GroundingTraining(tokenizer, [concept.label for concept in load_concepts()])
    module.load_state_dict(load_module_state(stage))
    save_model(module.model, directory, dtype=torch.bfloat16)
    tokenizer.save(directory)
    network = load_proposals(pretrained.proposals)
    save_proposal_network(network, directory / "proposal", dtype=torch.bfloat16)
    logger.info("wrote %s", directory)
