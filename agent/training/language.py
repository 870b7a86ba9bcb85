"""Pretraining of the nano language model on symbolic scenes: no picture is involved.

A region's slot holds the embedding of its name plus noise, and the model learns to copy, to look
a name up, and to point at regions by number. It stands in for the pretrained LLM the published
model starts from. Order matters (docs/decisions.md): copying first, few regions first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agent.detections import FloatArray
from agent.model.configuration import nano_config
from agent.model.language_model import LanguageModel, SlotType
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer, train_tokenizer
from agent.training.artwork import load_concepts
from agent.training.initialisation import initialise
from agent.training.loop import LoopSettings, load_module_state, train
from agent.training.mixture import Turn, corpus, draw_turns, naming_turns, yes_no_turns
from agent.training.packing import PackedBatch, PackedScene, collate_packed

logger = logging.getLogger(__name__)
VOCAB_SIZE = 3072
POINTER_LAYER = 2
POINTER_HEADS = 4
"""Heads whose attention is taught to look at the region that is pointed at next."""
NAMING_HEADS = slice(POINTER_HEADS, 2 * POINTER_HEADS)
"""Heads taught, while a region is described, to look where the question names it: one layer
earlier the copying heads have brought that region's slot there."""
IGNORED = -100


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
        vectors: Tensor = self(embeddings, torch.arange(len(self.table)))
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


def lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Next-token cross entropy; positions labelled IGNORED do not count."""
    return nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def token_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of counted positions predicted right."""
    counted = labels[:, 1:] != IGNORED
    right = logits[:, :-1].argmax(-1) == labels[:, 1:]
    return float(right[counted].float().mean())


Asker = Callable[[list[str | None], FloatArray, np.random.Generator], list[Turn]]
"""Names and boxes of a scene's regions to questions about it."""


class SymbolicCurriculum:
    """Draws symbolic batches; grows the scenes as the model learns."""

    def __init__(self, tokenizer: PromptTokenizer, seed: int = 0) -> None:
        self.tokenizer = tokenizer
        self.names = [concept.label for concept in load_concepts()]
        self.builder = SequenceBuilder(tokenizer)
        self.most_regions = 3
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
        """Scenes followed by every present name and two absent ones, pointed at in turn."""
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
        """Questions of every kind."""
        return draw_turns(names, self.names, 6, rng, boxes)

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


def run(directory: Path, *, steps: int, chat_from: int, rate: float = 2e-3) -> None:
    """Train, or go on training, the language model into `directory`."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.save(directory)
    curriculum = SymbolicCurriculum(tokenizer)
    state = directory / "curriculum.json"
    if state.is_file():
        curriculum.most_regions = json.loads(state.read_text())["most_regions"]
    module = LanguagePretraining(tokenizer, curriculum.names)

    def batches(start: int) -> Iterator[tuple[str, PackedBatch]]:
        rng = np.random.default_rng(start)
        for step in range(start, steps + 1):
            # Pointing is copying with a detour: it is not learned before copying is.
            copying = 0.9 if curriculum.copying_accuracy < 0.8 else 0.08
            draw = rng.random()
            if draw < copying:
                yield "copy", curriculum.copying(48)
            elif step >= chat_from and draw < copying + 0.3:
                yield "name", curriculum.chat(10, curriculum.naming)
            elif step >= chat_from and draw < copying + 0.7:
                yield "chat", curriculum.chat(16, curriculum.mixture)
            else:
                yield "point", curriculum.dense(20)

    def step(named: tuple[str, PackedBatch]) -> tuple[Tensor, dict[str, float]]:
        kind, batch = named
        with torch.autocast("cpu", torch.bfloat16):
            logits, attention = forward_packed(module, batch, noise=0.35)
        loss = lm_loss(logits, batch.labels)
        if kind != "copy":
            loss = (
                loss + 0.5 * pointing_loss(attention, batch) + 0.5 * naming_loss(attention, batch)
            )
        reached = token_accuracy(logits, batch.labels)
        if kind == "copy":
            curriculum.copying_accuracy = 0.8 * curriculum.copying_accuracy + 0.2 * reached
        if kind == "point":
            curriculum.learned(reached)
            state.write_text(json.dumps({"most_regions": curriculum.most_regions}))
        return loss, {kind: reached, "regions": curriculum.most_regions}

    settings = LoopSettings(
        steps=steps, learning_rate=rate, warmup_steps=100, weight_decay=0.02, log_every=20
    )
    train(module, step, batches, settings, directory)


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


def pointing_loss(attention: Tensor, batch: PackedBatch) -> Tensor:
    """How little the pointer heads look at the slot of the region that comes next.

    The language model loss alone finds this circuit too, but takes ten times the steps.
    """
    return attention_loss(attention[:, :POINTER_HEADS], batch.pointers)


def naming_loss(attention: Tensor, batch: PackedBatch) -> Tensor:
    """How little the naming heads look at the region token of the question being answered."""
    return attention_loss(attention[:, NAMING_HEADS], batch.asked)


def attention_loss(attention: Tensor, target: Tensor) -> Tensor:
    """Mean negative log attention paid to `target` (batch, length), where it is not -1.

    Args:
        attention: (batch, heads, length, length).
    """
    row, position = torch.nonzero(target >= 0, as_tuple=True)
    if not len(row):
        return attention.new_zeros(())
    looked = attention[row, :, position, target[row, position]]
    return -looked.float().clamp(min=1e-6).log().mean()
