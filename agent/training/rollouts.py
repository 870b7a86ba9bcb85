"""Answers drawn to questions about contact sheets, and what they earn.

Knows the rewards and the service's engine, not how anything is learned from them.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agent.detections import IntArray
from agent.engine import Engine
from agent.generation import image_slots, region_slots
from agent.generation_request import (
    Completion,
    PrefixInput,
    PrefixSource,
    QuestionInput,
    Request,
    Sampling,
)
from agent.model.language_model import LanguageModel
from agent.model.positions import SlotType
from agent.model.vlm_fo1 import VLMFO1
from agent.parsing import parse_regions
from agent.prefix_cache import PrefixCache
from agent.prompts import END_OF_TURN, Task, TaskKind
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer
from agent.training.rewards import (
    Rewards,
    RewardWeights,
    accuracy,
    box_adjustment,
    region_format,
    region_verification,
)
from agent.training.zoom_scenes import Sheet

_STATED = re.compile(r"</objects>\s*(\d+)")
_PREFIX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Drawing:
    """How questions and answers are drawn."""

    questions: int = 8
    """Of one step."""
    group: int = 8
    """Answers to each question."""
    temperature: float = 1.0
    absent: float = 0.25
    """Share of the searches for something that is not there."""
    count: float = 0.35
    """Share of the questions that ask how many."""
    least_shown: float = 0.5
    """Share of a sheet's regions that a question shows at least."""
    max_new_tokens: int = 48


@dataclass(frozen=True)
class SheetQuestion:
    """One question about one sheet."""

    sheet: Sheet
    """With the regions that are shown, in the order in which they are numbered."""
    number: int
    """Of the sheet among all."""
    rows: tuple[int, ...]
    """Which of its regions are shown: another choice and order every time, or the answers would be
    learned by heart."""
    task: Task
    label: str
    right: frozenset[int]
    """Regions that are the right answer."""
    targets: tuple[tuple[float, float, float, float], ...]
    """Boxes of all such objects in the scene."""


def rewards_of(question: SheetQuestion, text: str) -> Rewards:
    """What one answer earns; each part in 0..1.

    region: share of the named regions that the model, shown each alone, called what was asked for.
    box: how well the named crops fit an object that was asked for (`rewards.fit`), mean.
    accuracy: F1 of the named regions against the right ones; a count is right or wrong.
    format: whether all of it can be read.
    Naming nothing earns region, box and accuracy exactly where nothing is right.
    """
    sheet, right = question.sheet, question.right
    shown = len(sheet.crops)
    named = {index for found in parse_regions(text).values() for index in found if index < shown}
    well_formed = region_format(text, num_regions=shown)
    silent = float(not named and not right)
    # F1, where two empty lists agree.
    correct = silent or 2 * len(named & right) / (len(named) + len(right))
    if question.task.kind is TaskKind.COUNT:
        correct = _count_right(question, text)
    if not named or not right:
        return Rewards(silent, silent, correct, well_formed)
    verified = [region_verification(sheet.said_alone[index], question.label) for index in named]
    fits = [
        max(box_adjustment(crop, sheet.size, target=target) for target in question.targets)
        for crop in (sheet.crops[index].tolist() for index in named)
    ]
    return Rewards(float(np.mean(verified)), float(np.mean(fits)), correct, well_formed)


def _count_right(question: SheetQuestion, text: str) -> float:
    stated = _STATED.search(text)
    return accuracy(stated.group(1) if stated else "", str(len(question.right)))


class SheetQuestions:
    """Questions drawn by step, so that a resumed run goes on where it stopped."""

    def __init__(
        self, sheets: Sequence[Sheet], labels: Mapping[int, str], settings: Drawing
    ) -> None:
        """`labels`: names of the concepts that may be asked for, by id."""
        self.sheets = [sheet for sheet in sheets if (sheet.concepts >= 0).any()]
        self._labels = labels
        self._settings = settings

    def draw(self, step: int) -> list[SheetQuestion]:
        """The questions of one step."""
        rng = np.random.default_rng((97, step))
        return [self._question(rng) for _ in range(self._settings.questions)]

    def _question(self, rng: np.random.Generator) -> SheetQuestion:
        number = int(rng.integers(len(self.sheets)))
        rows = self._rows(self.sheets[number], rng)
        sheet = self.sheets[number].showing(rows)
        shown = np.unique(sheet.concepts[sheet.concepts >= 0])
        concept = int(rng.choice(shown))
        counting = rng.random() < self._settings.count
        if not counting and rng.random() < self._settings.absent:
            here = set(sheet.object_concepts.tolist())
            concept = int(rng.choice([c for c in self._labels if c not in here]))
        label = self._labels[concept]
        targets = sheet.objects[sheet.object_concepts == concept]
        return SheetQuestion(
            sheet,
            number,
            tuple(rows.tolist()),
            Task.count(label) if counting else Task.detect(label),
            label,
            frozenset(sheet.regions_of(concept)),
            tuple(tuple(box) for box in targets.tolist()),
        )

    def _rows(self, sheet: Sheet, rng: np.random.Generator) -> IntArray:
        """Some of the regions, an object among them, in any order."""
        order = rng.permutation(len(sheet.crops))
        keep = math.ceil(len(order) * rng.uniform(self._settings.least_shown, 1.0))
        rows = order[:keep]
        if (sheet.concepts[rows] >= 0).any():
            return rows
        return np.append(rows, order[keep:][sheet.concepts[order[keep:]] >= 0][:1])


@dataclass(frozen=True)
class Rollouts:
    """Distinct answers to one question, how often each was drawn, and what each earned."""

    question: SheetQuestion
    ids: list[tuple[int, ...]]
    times: list[int]
    rewards: list[Rewards]

    def advantages(self, weights: RewardWeights) -> list[float]:
        """(reward - mean) / standard deviation over the group, one per distinct answer."""
        totals = np.repeat([reward.total(weights) for reward in self.rewards], self.times)
        spread = float(totals.std())
        if spread < 1e-6:
            return [0.0] * len(self.ids)
        mean = float(totals.mean())
        return [(reward.total(weights) - mean) / spread for reward in self.rewards]


class SheetPrompts:
    """A sheet's part of the prompt: its image and region tokens, made once by the frozen parts."""

    def __init__(self, model: VLMFO1, tokenizer: PromptTokenizer, sheets: Sequence[Sheet]) -> None:
        family = model.config.language_family
        self.builder = SequenceBuilder(tokenizer, family)
        self.grids: list[tuple[int, int] | None] = []
        self.image: list[Tensor] = []
        self.regions: list[Tensor] = []
        """Of each sheet (num_regions, slots of a region, hidden)."""
        for sheet in sheets:
            features = sheet.features
            with torch.no_grad():
                self.image.append(image_slots(model, features))
                slots = region_slots(model, features)
            self.regions.append(slots.unflatten(0, (-1, family.order.num_slots)))
            self.grids.append(model.config.token_grid(features.grid))

    def shown(self, question: SheetQuestion) -> Tensor:
        """(slots, hidden): what stands in the slots of the regions that a question shows."""
        return self.regions[question.number][list(question.rows)].flatten(0, 1)

    def prefix(self, question: SheetQuestion) -> PrefixInput:
        """What goes before a question."""
        number = question.number
        filling = {SlotType.IMAGE: self.image[number], SlotType.REGION: self.shown(question)}
        sequence = self.builder.prefix(self.grids[number], len(question.rows))
        return PrefixInput(
            sequence.ids,
            sequence.positions,
            sequence.next_position,
            sequence.slots,
            self.grids[number],
            filling.__getitem__,
        )


class Actor:
    """Draws answers with the service's own engine."""

    def __init__(self, language: LanguageModel, prompts: SheetPrompts, settings: Drawing) -> None:
        self._language = copy.deepcopy(language).eval()
        self._prompts = prompts
        self._settings = settings
        self._engine = Engine(self._language, PrefixCache(_PREFIX_BYTES))
        self._round = 0

    def follow(self, language: LanguageModel) -> None:
        """Take over weights; prefixes of the old ones are never met again."""
        self._language.load_state_dict(language.state_dict())
        self._round += 1

    def draw(self, questions: Sequence[SheetQuestion], seed: int) -> list[Rollouts]:
        """A group of answers to each question; equal seeds draw equal ones."""
        group, temperature = self._settings.group, self._settings.temperature
        first = seed * len(questions) * group
        futures = [
            [
                self._engine.submit(
                    self._request(question, Sampling(first + place * group + number, temperature))
                )
                for number in range(group)
            ]
            for place, question in enumerate(questions)
        ]
        return [
            self._rollouts(question, [future.result() for future in row])
            for question, row in zip(questions, futures, strict=True)
        ]

    def greedy(self, questions: Sequence[SheetQuestion]) -> list[Rewards]:
        """What the likeliest answer to each question earns."""
        futures = [self._engine.submit(self._request(question, None)) for question in questions]
        return [
            self._rollouts(question, [future.result()]).rewards[0]
            for question, future in zip(questions, futures, strict=True)
        ]

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()

    def _rollouts(self, question: SheetQuestion, done: Sequence[Completion]) -> Rollouts:
        end = self._prompts.builder.end_of_turn
        counted = Counter(one.ids if one.truncated else (*one.ids, end) for one in done)
        texts = [self._prompts.builder.tokenizer.decode(ids) for ids in counted]
        return Rollouts(
            question,
            list(counted),
            list(counted.values()),
            [rewards_of(question, text.removesuffix(END_OF_TURN)) for text in texts],
        )

    def _request(self, question: SheetQuestion, sampling: Sampling | None) -> Request:
        prompts = self._prompts
        text = question.task.text

        def asked(start: int) -> QuestionInput:
            sequence = prompts.builder.question(text, start=start)
            return QuestionInput(sequence.ids, sequence.positions, sequence.next_position)

        return Request(
            PrefixSource(
                f"{self._round}/{question.number}/{question.rows}",
                lambda: prompts.prefix(question),
            ),
            asked,
            prompts.builder.end_of_turn,
            self._settings.max_new_tokens,
            sampling=sampling,
        )
