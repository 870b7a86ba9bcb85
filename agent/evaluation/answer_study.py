"""Experiment: pointing with region tokens against printing corners, by the same language model.

Runs of `groundstream train pointing` answer the same labels about the same symbolic scenes, small
and nearly certain ones: is it there, and where. Both read the scene once and open the answer with
the label; one then reads every region's chance from one pass, the other writes numbers token by
token. Ablations of training are compared the same way, and words that training never asks with
those that it does. Scenes of more regions than a run was trained with are read page by page, as
the service reads them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache

from agent.detections import FloatArray
from agent.evaluation.detection import match_count
from agent.evaluation.tally import Estimate, Tally
from agent.region_choice import combined
from agent.tokenizer import PromptTokenizer
from agent.training.pointing import PointingRecipe
from agent.training.pointing_model import NUM_KNOWN, PointingModel
from agent.training.scene_lessons import Lesson, SceneWriter
from agent.training.scene_questions import Questioner, held_out, shows_held_out
from agent.training.symbolic_scenes import Scene, SceneMaker
from agent.vocabulary import vocabulary

_BOX = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\]")
_TOKENS_A_BOX = 24


@dataclass(frozen=True)
class ScenesAsked:
    """What every run is asked."""

    scenes: int = 60
    labels: int = 8
    held_out: int = 4
    """Labels more, of words that training never asks, where a scene shows such things."""
    evidence_share: float = 0.0
    """Of class evidence, as a model's `config.json` may say it. What is right follows from the same
    evidence, so only without it are answers the language model's own."""
    least_regions: int = 1
    most_regions: int = 6
    doubt: float = 0.3
    seed: int = 77

    def regions(self, number: int) -> int:
        """Of the scene of a number: every size in turn."""
        return self.least_regions + number % (self.most_regions - self.least_regions + 1)


@dataclass(frozen=True)
class Boxes:
    """One answer."""

    xyxy: FloatArray
    tokens: int
    """That the language model wrote, the end among them."""
    passes: int
    """Of the language model, from the question on."""


@dataclass(frozen=True)
class _Page:
    """Regions of a scene that one prompt shows, read."""

    scene: Scene
    cache: DynamicCache
    length: int
    """Positions in the cache, before and after an answer."""

    @property
    def boxes(self) -> FloatArray:
        """(regions, 4) in 0..1."""
        return np.stack([region.box for region in self.scene.regions])


class Answerer:
    """What a run has learned, asked."""

    def __init__(self, run: Path) -> None:
        """`run`: a run's folder, or a model's."""
        written = run / "recipe.json"
        recipe = PointingRecipe.read(written) if written.is_file() else PointingRecipe()
        self._printed, self._regions_a_page = recipe.printed, max(recipe.most_regions)
        self._model = PointingModel(recipe.rank)
        self._model.take_over(load_file(run / "language.safetensors"))
        self._model.eval()
        self._writer = SceneWriter(PromptTokenizer(self._model.tokenizer))
        self._lesson = Lesson(self._model, self._writer)

    @torch.inference_mode()
    def measure(self, head: np.ndarray, asked: ScenesAsked) -> dict[str, Estimate]:
        """Whole answers right (every box of the truth at IoU 0.5 and no other), boxes, cost.

        Figures of words that training never asks have names that begin with "held_out_".
        """
        words, tally = vocabulary(), Tally()
        maker, questions = SceneMaker(words, head, asked.seed), Questioner(words, asked.seed)
        untaught = Questioner(words, asked.seed, may_ask=held_out)
        maker.doubt = asked.doubt
        for number in range(asked.scenes):
            scene = maker.scene(asked.regions(number))
            pages = [
                self._page(scene.page(start, self._regions_a_page))
                for start in range(0, len(scene.regions), self._regions_a_page)
            ]
            labels = [("", one) for one in questions.labels(scene, asked.labels)]
            if asked.held_out and shows_held_out(scene):
                labels += [("held_out_", one) for one in untaught.labels(scene, asked.held_out)]
            boxes = np.stack([region.box for region in scene.regions])
            for kind, one in labels:
                started = time.perf_counter()
                answer = _joined(
                    [self._answer(one.label, page, asked.evidence_share) for page in pages]
                )
                seconds = time.perf_counter() - started
                for name, (part, whole) in _figures(answer, boxes[one.regions]).items():
                    tally.add(str(number), kind + name, part, whole)
                tally.add(str(number), f"{kind}milliseconds", 1000 * seconds)
        return tally.estimates()

    def _page(self, scene: Scene) -> _Page:
        trunk = self._lesson.embeddings(self._writer.plan(scene, (), cells=False))
        cache = DynamicCache()
        self._read(trunk, 0, cache)
        return _Page(scene, cache, len(trunk))

    def _answer(self, label: str, page: _Page, evidence_share: float) -> Boxes:
        boxes, cache, length = page.boxes, page.cache, page.length
        ids = torch.tensor(self._writer.opened(label))
        state = self._read(self._model.embed(ids), length, cache)
        rows, close = self._model.new_rows(), self._writer.close
        if not self._printed:
            cache.crop(length - cache.get_seq_length())
            among = torch.tensor([*self._writer.regions[: len(boxes)], close]) - NUM_KNOWN
            logits = state @ rows[among].T
            share = evidence_share if page.scene.beliefs.knows(label) else 0.0
            chances = torch.from_numpy(page.scene.chances(label))
            odds = combined(logits[:-1] - logits[-1], chances, share)
            meant = np.flatnonzero((odds >= 0).numpy())
            return Boxes(boxes[meant], len(meant) + 1, 1)
        written: list[int] = []
        table = torch.cat([self._model.known, rows])
        for _ in range(_TOKENS_A_BOX * (len(boxes) + 1)):
            token = int((table @ state).argmax())
            if token == close:
                break
            written.append(token)
            embedded = self._model.embed(torch.tensor([token]))
            state = self._read(embedded, length + len(ids) + len(written) - 1, cache)
        cache.crop(length - cache.get_seq_length())
        corners = printed_boxes(self._model.tokenizer.decode(written))
        return Boxes(corners, len(written) + 1, len(written) + 1)

    def _read(self, embedded: Tensor, start: int, cache: DynamicCache) -> Tensor:
        """(hidden,) state of the last position."""
        language = self._model.language
        positions = torch.arange(start, start + len(embedded))[None]
        read = language(
            inputs_embeds=embedded[None].to(language.embed_tokens.weight.dtype),
            position_ids=positions, past_key_values=cache, use_cache=True,
        )  # fmt: skip
        state: Tensor = read.last_hidden_state[0, -1].float()
        return state


def _figures(answer: Boxes, truth: FloatArray) -> dict[str, tuple[float, float]]:
    """What an answer adds to each figure, and out of how much."""
    num_found, num_true = len(answer.xyxy), len(truth)
    if not num_true:
        return {"absent_right": (not num_found, 1), "passes": (answer.passes, 1)}
    right = match_count(answer.xyxy, np.ones(num_found, np.float32), truth)
    return {
        "found_exact": (right == num_true == num_found, 1),
        "recall": (right, num_true),
        "precision": (right, num_found),
        "f1": (2 * right, num_true + num_found),
        "tokens_found": (answer.tokens, 1),
        "passes": (answer.passes, 1),
    }


def _joined(answers: Sequence[Boxes]) -> Boxes:
    """What all pages of a scene answer."""
    return Boxes(
        np.concatenate([answer.xyxy for answer in answers]),
        sum(answer.tokens for answer in answers),
        sum(answer.passes for answer in answers),
    )


def printed_boxes(text: str) -> FloatArray:
    """(n, 4) corners in 0..1 of what `agent.training.scene_lessons.printed_box` writes."""
    found = [[int(value) / 1000 for value in match] for match in _BOX.findall(text)]
    return np.array(found, dtype=np.float32).reshape(-1, 4)
