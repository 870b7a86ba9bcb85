"""Pretraining of the nano language model on symbolic scenes: no picture is involved.

A region's slot holds the embedding of its name plus noise, and the model learns to copy, to look
a name up, and to point at regions by number. It stands in for the pretrained LLM the published
model starts from. Order matters (docs/decisions.md): copying first, few regions first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agent.detections import FloatArray
from agent.model.configuration import nano_config
from agent.model.language_model import LanguageModel, SlotType
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer, train_tokenizer
from agent.training.answer_losses import (
    POINTER_LAYER,
    answer_counts,
    lm_loss,
    naming_loss,
    pointing_loss,
    token_accuracy,
)
from agent.training.artwork import load_concepts
from agent.training.initialisation import initialise
from agent.training.loop import (
    CPU,
    LoopSettings,
    Objective,
    Terms,
    load_module_state,
    numpy_draws,
    train,
)
from agent.training.mixture import (
    MixtureSettings,
    Turn,
    corpus,
    draw_turns,
    naming_turns,
    yes_no_turns,
)
from agent.training.packing import IGNORED, PackedBatch, PackedScene, collate_packed
from agent.training.workers import Figures

VOCAB_SIZE = 3072


def build_tokenizer() -> PromptTokenizer:
    """The nano tokenizer: a function of the concept list alone."""
    return train_tokenizer(corpus([concept.label for concept in load_concepts()]), VOCAB_SIZE)


_PLACE_WIDTH = 3
_PLACE_SHARE = 0.5
"""A coordinate at the picture's edge, relative to the length of a name's vector."""


class NameSlots(nn.Module):
    """Stand-in for the region encoder: a name's embedding as one vector."""

    def __init__(self, tokenizer: PromptTokenizer, names: list[str], hidden: int) -> None:
        super().__init__()
        self.map = nn.Linear(hidden, hidden)
        nn.init.eye_(self.map.weight)
        nn.init.zeros_(self.map.bias)
        space = tokenizer.encode(" ")[0]
        ids = [[i for i in tokenizer.encode(name) if i != space] for name in names]
        longest = max(len(row) for row in ids)
        table = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        share = torch.tensor(
            [[len(row) ** -0.5] * len(row) + [0.0] * (longest - len(row)) for row in ids]
        )
        self.table = nn.Buffer(table, persistent=False)
        self.share = nn.Buffer(share, persistent=False)
        self.place = nn.Buffer(
            nn.init.orthogonal_(
                torch.empty(_PLACE_WIDTH, hidden), generator=torch.Generator().manual_seed(3)
            ),
            persistent=False,
        )

    def forward(self, embeddings: nn.Embedding, concepts: Tensor) -> Tensor:
        """(...,) concept ids to (..., hidden); -1 is a region without a name."""
        known = concepts.clamp(min=0)
        words: Tensor = embeddings(self.table[known])
        summed = (words * self.share[known][..., None]).sum(-2)
        return self.map(summed * (concepts >= 0)[..., None])

    def all_names(self, embeddings: nn.Embedding) -> Tensor:
        """(num_names, hidden): the vector of every name."""
        vectors: Tensor = self(embeddings, torch.arange(len(self.table), device=self.table.device))
        return vectors

    def places(self, embeddings: nn.Embedding, boxes: Tensor) -> Tensor:
        """What a slot says of where its region is and how large: (n, hidden).

        Linear in centre and logarithm of the area, so that "leftmost" is a direction.

        Args:
            boxes: (n, 4) xyxy relative to the picture.
        """
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
        centre = (boxes[:, :2] + boxes[:, 2:]) - 1.0
        said = torch.cat([centre, sides.log().sum(-1, keepdim=True) / 4.0 + 1.0], dim=-1)
        name_length = embeddings.weight.detach().std() * embeddings.embedding_dim**0.5
        return said @ self.place * (_PLACE_SHARE * name_length)


def name_vectors(directory: Path) -> Tensor:
    """(num_names, hidden): what a trained language model expects in the slot of each name.

    Args:
        directory: of the language stage.
    """
    names = [concept.label for concept in load_concepts()]
    tokenizer = PromptTokenizer.from_directory(directory)
    module = LanguagePretraining(tokenizer, names)
    module.load_state_dict(load_module_state(directory))
    return module.slots.all_names(module.language_model.model.embed_tokens).detach()


class LanguagePretraining(nn.Module):
    """The language model and its symbolic eyes."""

    def __init__(self, tokenizer: PromptTokenizer, names: list[str]) -> None:
        super().__init__()
        config = nano_config(VOCAB_SIZE)
        self.language_model = LanguageModel(
            config.text, tie_word_embeddings=config.tie_word_embeddings
        )
        self.language_model.model.set_attn_implementation("eager")
        initialise(self.language_model)
        self.slots = NameSlots(tokenizer, names, config.text.hidden_size)

    def slot_values(self, concepts: Tensor, boxes: Tensor, noise: float) -> Tensor:
        """Noisy slot vectors; nameless regions are noise and place alone."""
        values = self.slots(self.language_model.model.embed_tokens, concepts)
        scale = self.language_model.model.embed_tokens.weight.detach().std()
        strength = torch.where(concepts >= 0, noise, 1.0)[..., None]
        placed = values + self.slots.places(self.language_model.model.embed_tokens, boxes)
        return placed + torch.randn_like(values) * scale * strength


Asker = Callable[[list[str | None], FloatArray, np.random.Generator], list[Turn]]
"""Names and boxes of a scene's regions to questions about it."""


@dataclass(frozen=True)
class LanguageRecipe:
    """Pretraining of the language model."""

    loop: LoopSettings
    chat_from: int
    """Step from which whole prompts are drawn beside bare pointing."""
    copy_batch: int
    point_batch: int
    name_batch: int
    chat_batch: int
    """Sequences per batch, by kind."""
    noise: float
    """Of a slot, relative to the deviation of an embedding."""
    pointing: float
    naming: float
    """Weights of the attention losses."""
    rejection: bool
    """Whether things are searched for that are not there (experiments leave that out)."""
    first_regions: int
    """Regions of the largest scenes in the beginning; more as the model learns."""
    copying_first: float
    """Share of the batches that is plain copying until that goes well; then it is 0.08."""


_NOTHING_ABSENT = MixtureSettings(absent=0.0, detect=0.4, yes_no=0.0)


class SymbolicCurriculum:
    """Draws symbolic batches; grows the scenes as the model learns (`loop.Curriculum`)."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        seed: int = 0,
        *,
        rejection: bool = True,
        first_regions: int = 3,
    ) -> None:
        """`rejection` and `first_regions` as in `LanguageRecipe`."""
        self.tokenizer = tokenizer
        self.rejection = rejection
        self.names = [concept.label for concept in load_concepts()]
        self.builder = SequenceBuilder(tokenizer)
        self.most_regions = first_regions
        self.steps = 0
        self._ids = [tokenizer.encode(name) for name in self.names]
        self._accuracy = 0.0
        self.copying_accuracy = 0.0
        self._rng = np.random.default_rng(seed)

    def learned(self, accuracy: float) -> None:
        """Follow the accuracy of pointing; one more region each time it is good."""
        self._accuracy = 0.9 * self._accuracy + 0.1 * accuracy
        if self._accuracy > 0.8 and self.most_regions < 100:
            grow = max(1, self.most_regions // 10)
            self.most_regions = min(100, self.most_regions + grow)
            self._accuracy -= 0.08

    def after_step(self, figures: Figures) -> None:
        """Follow how well copying and pointing went."""
        self.steps += 1
        if "copy" in figures:
            self.copying_accuracy = 0.8 * self.copying_accuracy + 0.2 * figures["copy"]
        if "point" in figures:
            self.learned(figures["point"])

    def state_dict(self) -> dict[str, float]:
        """Everything that `after_step` changes."""
        return {
            "steps": self.steps,
            "most_regions": self.most_regions,
            "accuracy": self._accuracy,
            "copying_accuracy": self.copying_accuracy,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict`."""
        self.steps, self.most_regions = int(state["steps"]), int(state["most_regions"])
        self._accuracy = state["accuracy"]
        self.copying_accuracy = state["copying_accuracy"]

    def batches(self, recipe: LanguageRecipe) -> Iterator[tuple[str, PackedBatch]]:
        """Kinds and batches; each draws from the randomness of the loop's batch."""
        while True:
            self._rng = numpy_draws()
            # Pointing is copying with a detour: it is not learned before copying is.
            copying = recipe.copying_first if self.copying_accuracy < 0.8 else 0.08
            draw = self._rng.random()
            if draw < copying:
                yield "copy", self.copying(recipe.copy_batch)
            elif self.steps >= recipe.chat_from and draw < copying + 0.3:
                yield "name", self.chat(recipe.name_batch, self.naming)
            elif self.steps >= recipe.chat_from and draw < copying + 0.7:
                yield "chat", self.chat(recipe.chat_batch, self.mixture)
            else:
                yield "point", self.dense(recipe.point_batch)

    def draw_concepts(self) -> np.ndarray:
        """Concept id of each region of one scene, -1 for none; some names repeat."""
        rng = self._rng
        count = int(rng.integers(1, self.most_regions + 1))
        pool = rng.choice(len(self.names), size=max(1, int(count * 0.8)), replace=False)
        concepts = rng.choice(pool, size=count)
        concepts[rng.random(count) < 0.12] = -1
        return np.asarray(concepts)

    def draw_boxes(self, count: int) -> FloatArray:
        """(count, 4) boxes anywhere in the picture, of any size."""
        rng = self._rng
        sides = np.exp(rng.uniform(np.log(0.04), np.log(0.5), (count, 1)))
        sides = np.clip(sides * np.exp(rng.normal(0.0, 0.25, (count, 2))), 0.02, 0.95)
        corner = rng.random((count, 2)) * (1.0 - sides)
        return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)

    def dense(self, batch_size: int) -> PackedBatch:
        """Scenes followed by every present name and, with rejection, two absent ones."""
        return collate_packed([self._dense_scene() for _ in range(batch_size)])

    def _dense_scene(self) -> PackedScene:
        rng, tokenizer = self._rng, self.tokenizer
        concepts = self.draw_concepts()
        regions = np.sort(rng.choice(100, size=len(concepts), replace=False))
        ids: list[int] = []
        slots: list[int] = []
        for index in regions:
            ids += [tokenizer.region(int(index)), 0]
            slots += [SlotType.TEXT, SlotType.REGION]
        labels = [IGNORED] * len(ids)
        asked = sorted({int(c) for c in concepts if c >= 0})
        if self.rejection:
            asked += [int(c) for c in rng.choice(len(self.names), 2) if c not in asked]
        rng.shuffle(asked)
        opening, middle = tokenizer.control("<ground>"), tokenizer.control("</ground>")
        objects, closing = tokenizer.control("<objects>"), tokenizer.control("</objects>")
        for concept in asked[:24]:
            given = [opening, *self._ids[concept], middle, objects]
            found = [tokenizer.region(int(r)) for r in regions[concepts == concept]]
            ids += [*given, *found, closing]
            labels += [IGNORED] * len(given) + [*found, closing]
        slots += [SlotType.TEXT] * (len(ids) - len(slots))
        boxes = self.draw_boxes(len(concepts))
        return PackedScene.causal(ids, slots, labels, concepts, boxes)

    def copying(self, batch_size: int) -> PackedBatch:
        """Random tokens said twice; only the second time counts."""
        scenes = []
        for _ in range(batch_size):
            length = int(self._rng.integers(12, 48))
            once = self._rng.integers(0, VOCAB_SIZE, length).tolist()
            labels = [IGNORED] * length + once
            slots = [int(SlotType.TEXT)] * (2 * length)
            nothing = np.zeros((0, 4), dtype=np.float32)
            scenes.append(
                PackedScene.causal(once * 2, slots, labels, np.zeros(0, dtype=int), nothing)
            )
        return collate_packed(scenes)

    def chat(self, batch_size: int, ask: Asker) -> PackedBatch:
        """Whole prompts as the service writes them, several isolated questions a scene."""
        scenes = []
        for _ in range(batch_size):
            concepts = self.draw_concepts()
            names = [self.names[c] if c >= 0 else None for c in concepts]
            boxes = self.draw_boxes(len(concepts))
            turns = ask(names, boxes, self._rng)
            side = int(self._rng.integers(3, 8))
            grid = (side, int(self._rng.integers(3, 8))) if self._rng.random() < 0.5 else None
            scenes.append(PackedScene.questions(self.builder, concepts, turns, grid, boxes))
        return collate_packed(scenes)

    def mixture(
        self, names: list[str | None], boxes: FloatArray, rng: np.random.Generator
    ) -> list[Turn]:
        """Questions of every kind; without rejection, only yes or no is asked of absent things."""
        if self.rejection:
            return draw_turns(names, self.names, 6, rng, boxes)
        searches = draw_turns(names, self.names, 4, rng, boxes, _NOTHING_ABSENT)
        return searches + yes_no_turns(names, self.names, 2, rng)

    def naming(
        self, names: list[str | None], _boxes: FloatArray, rng: np.random.Generator
    ) -> list[Turn]:
        """Questions what regions are."""
        return naming_turns(names, 12, rng)

    def yes_or_no(
        self, names: list[str | None], _boxes: FloatArray, rng: np.random.Generator
    ) -> list[Turn]:
        """Questions whether something is there."""
        return yes_no_turns(names, self.names, 6, rng)


def run(
    directory: Path,
    recipe: LanguageRecipe,
    *,
    device: torch.device = CPU,
    begin: Callable[[LanguagePretraining], None] | None = None,
) -> None:
    """Train, or go on training, the language model into `directory`.

    Args:
        begin: gives a new model other weights than it starts with.
    """
    torch.manual_seed(recipe.loop.seed)
    tokenizer = build_tokenizer()
    tokenizer.save(directory)
    curriculum = SymbolicCurriculum(
        tokenizer, rejection=recipe.rejection, first_regions=recipe.first_regions
    )
    module = LanguagePretraining(tokenizer, curriculum.names)
    if begin is not None:
        begin(module)
    module.to(device)

    def losses(named: tuple[str, PackedBatch]) -> tuple[Terms, Figures]:
        kind, batch = named
        with recipe.loop.autocast(device):
            logits, attention = forward_packed(module, batch, noise=recipe.noise)
        terms = {"lm": lm_loss(logits, batch.labels)}
        if kind != "copy":
            terms["pointing"] = recipe.pointing * pointing_loss(attention, batch)
            terms["naming"] = recipe.naming * naming_loss(attention, batch)
        reached = token_accuracy(logits, batch.labels)
        return terms, {kind: reached, "regions": curriculum.most_regions}

    objective = Objective(
        batches=lambda _first, _stride: curriculum.batches(recipe),
        losses=losses,
        counts=lambda named: answer_counts(named[1]),
        curriculum=curriculum,
    )
    train(module, objective, recipe.loop, directory)


def forward_packed(
    module: LanguagePretraining, batch: PackedBatch, *, noise: float
) -> tuple[Tensor, Tensor]:
    """Logits of a packed symbolic batch and the pointer layer's attention; image slots are noise.

    Returns:
        (batch, length, vocabulary) and (batch, heads, length, length).
    """
    language = module.language_model
    embeddings = language.embed(batch.ids)
    scale = language.model.embed_tokens.weight.detach().std()
    image = batch.slots == SlotType.IMAGE
    embeddings = torch.where(image[..., None], torch.randn_like(embeddings) * scale, embeddings)
    region = batch.slots == SlotType.REGION
    values = module.slot_values(batch.concepts[batch.concepts > -2], batch.boxes, noise)
    embeddings = embeddings.masked_scatter(region[..., None], values.to(embeddings.dtype))
    return attended_logits(language, embeddings, batch)


def attended_logits(
    language: LanguageModel, embeddings: Tensor, batch: PackedBatch
) -> tuple[Tensor, Tensor]:
    """Logits and the pointer layer's attention of embedded, packed questions."""
    output = language.model(
        inputs_embeds=embeddings,
        position_ids=batch.positions,
        attention_mask=batch.mask,
        use_cache=False,
        output_attentions=True,
    )
    return language.logits(output.last_hidden_state), output.attentions[POINTER_LAYER]
