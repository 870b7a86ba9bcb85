"""Experiment: pointing with region tokens against printing corners, by the same language model.

Runs of `groundstream train pointing` answer the same labels about the same symbolic scenes, small
and nearly certain ones: is it there, and where. Both read the scene once and open the answer with
the label; one then reads every region's chance from one pass, the other writes numbers token by
token. Ablations of training are compared the same way.
"""

from __future__ import annotations

import re
import time
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
from agent.tokenizer import PromptTokenizer
from agent.training.pointing import PointingRecipe
from agent.training.pointing_model import NUM_KNOWN, PointingModel
from agent.training.scene_lessons import Lesson, SceneWriter
from agent.training.scene_questions import Questioner
from agent.training.symbolic_scenes import SceneMaker
from agent.training.vocabulary import vocabulary

_BOX = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\]")
_TOKENS_A_BOX = 24


@dataclass(frozen=True)
class ScenesAsked:
    """What every run is asked."""

    scenes: int = 60
    labels: int = 8
    most_regions: int = 6
    doubt: float = 0.3
    seed: int = 77


@dataclass(frozen=True)
class Boxes:
    """One answer."""

    xyxy: FloatArray
    tokens: int
    """That the language model wrote, the end among them."""
    passes: int
    """Of the language model, from the question on."""


class Answerer:
    """What a run has learned, asked."""

    def __init__(self, run: Path) -> None:
        """`run`: a run's folder, or a model's."""
        written = run / "recipe.json"
        recipe = PointingRecipe.read(written) if written.is_file() else PointingRecipe()
        self._printed = recipe.printed
        self._model = PointingModel(recipe.rank)
        self._model.take_over(load_file(run / "language.safetensors"))
        self._model.eval()
        self._writer = SceneWriter(PromptTokenizer(self._model.tokenizer))
        self._lesson = Lesson(self._model, self._writer)

    @torch.inference_mode()
    def measure(self, head: np.ndarray, asked: ScenesAsked) -> dict[str, Estimate]:
        """Whole answers right (every box of the truth at IoU 0.5 and no other), boxes, cost."""
        words, tally = vocabulary(), Tally()
        maker, questions = SceneMaker(words, head, asked.seed), Questioner(words, asked.seed)
        maker.doubt = asked.doubt
        for number in range(asked.scenes):
            scene = maker.scene(1 + number % asked.most_regions)
            boxes = np.stack([region.box for region in scene.regions])
            plan = self._writer.plan(scene, (), cells=False)
            trunk, cache = self._lesson.embeddings(plan), DynamicCache()
            self._read(trunk, 0, cache)
            for one in questions.labels(scene, asked.labels):
                started = time.perf_counter()
                answer = self._answer(one.label, boxes, cache, len(trunk))
                seconds = time.perf_counter() - started
                self._count(tally, str(number), answer, boxes[one.regions])
                tally.add(str(number), "milliseconds", 1000 * seconds)
        return tally.estimates()

    def _count(self, tally: Tally, scene: str, answer: Boxes, truth: FloatArray) -> None:
        right = match_count(answer.xyxy, np.ones(len(answer.xyxy), np.float32), truth)
        if len(truth):
            tally.add(scene, "found_exact", right == len(truth) == len(answer.xyxy))
            tally.add(scene, "recall", right, len(truth))
            tally.add(scene, "precision", right, len(answer.xyxy))
            tally.add(scene, "f1", 2 * right, len(truth) + len(answer.xyxy))
            tally.add(scene, "tokens_found", answer.tokens)
        else:
            tally.add(scene, "absent_right", not len(answer.xyxy))
        tally.add(scene, "passes", answer.passes)

    def _answer(self, label: str, boxes: FloatArray, cache: DynamicCache, length: int) -> Boxes:
        """The answer to a label; the cache holds `length` positions, before and after."""
        ids = torch.tensor(self._writer.opened(label))
        state = self._read(self._model.embed(ids), length, cache)
        rows, close = self._model.new_rows(), self._writer.close
        if not self._printed:
            cache.crop(length - cache.get_seq_length())
            among = torch.tensor([*self._writer.regions[: len(boxes)], close]) - NUM_KNOWN
            logits = state @ rows[among].T
            meant = np.flatnonzero((logits[:-1] >= logits[-1]).numpy())
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


def printed_boxes(text: str) -> FloatArray:
    """(n, 4) corners in 0..1 of what `agent.training.scene_lessons.printed_box` writes."""
    found = [[int(value) / 1000 for value in match] for match in _BOX.findall(text)]
    return np.array(found, dtype=np.float32).reshape(-1, 4)
