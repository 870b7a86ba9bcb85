"""Symbolic scenes as lessons: questions in one sequence, in the words of the service, and a loss.

A scene's regions and image are the trunk, every question is a branch (`agent.training.branches`).
Knows no schedule.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from agent.model.family import LLAMA
from agent.model.positions import SlotType
from agent.prompts import MAX_REGIONS, Task
from agent.sequence import SequenceBuilder, TokenSequence
from agent.tokenizer import PromptTokenizer
from agent.training.branches import Branch, Tree, pack
from agent.training.pointing_model import NUM_KNOWN, PointingModel
from agent.training.scene_questions import Asked, Questioner, Told
from agent.training.symbolic_scenes import Array, Scene

_TURN = "turn"
_NAMED = 5
"""Regions of a scene that are to be named."""
_TALK = 0.3
"""Of the scenes beside which something is asked that has nothing to do with them."""
_CELLS = (5, 5)
"""Rows and columns of a scene's image tokens."""


@dataclass(frozen=True)
class LessonPlan:
    """A scene and its questions, packed."""

    scene: Scene
    trunk: TokenSequence
    tree: Tree
    kinds: tuple[str, ...]
    """Of each branch."""
    chances: tuple[Array | None, ...]
    """Of each branch that chooses regions, how likely each is meant."""


class SceneWriter:
    """Scenes and questions to packed sequences, in the words of the service."""

    def __init__(self, tokenizer: PromptTokenizer, *, printed: bool = False) -> None:
        """`printed`: answers are corners in words in place of region tokens."""
        self._tokenizer = tokenizer
        self._printed = printed
        self._builder = SequenceBuilder(tokenizer, LLAMA)
        self._turn = tokenizer.encode(self._builder.answer_opening)
        self.regions = [tokenizer.region(index) for index in range(MAX_REGIONS)]
        self.close = tokenizer.control("</objects>")

    def plan(
        self, scene: Scene, questions: Iterable[tuple[str, Asked | Told]], *, cells: bool
    ) -> LessonPlan:
        """A scene with its questions, (kind, question) each; `cells`: with the image's tokens."""
        trunk = self._builder.prefix(_CELLS if cells else None, len(scene.regions))
        stem = Branch(self._turn, [False] * len(self._turn))
        kinds, asked = [_TURN], list(questions)
        branches: list[Branch] = [stem]
        chances: list[Array | None] = [None]
        for kind, one in asked:
            kinds.append(kind)
            if isinstance(one, Told):
                branches.append(self._told(one))
            else:
                branches.append(self._corners(scene, one) if self._printed else self._asked(one))
            chances.append(one.chances if isinstance(one, Asked) else None)
        return LessonPlan(
            scene, trunk, pack(trunk.ids.tolist(), branches), tuple(kinds), tuple(chances)
        )

    def opened(self, label: str) -> list[int]:
        """What follows the turn's end: an answer that is open where the list of `label` begins."""
        opened = self._builder.opened_list(self._builder.asked(label), start=0)
        return opened.ids.tolist()[len(self._turn) :]

    def _corners(self, scene: Scene, asked: Asked) -> Branch:
        """The label is given, and the corners of what is meant are written behind it."""
        given = self.opened(asked.label)
        corners = "".join(printed_box(scene.regions[region].box) for region in asked.regions)
        answer = [*self._tokenizer.encode(corners), self.close]
        return Branch(
            given + answer, [False] * len(given) + [True] * len(answer), stem=0, free=True
        )

    def _asked(self, asked: Asked) -> Branch:
        """The label is given; which regions are meant is read where the list would begin."""
        given = self.opened(asked.label)
        return Branch([*given, self.close], [False] * len(given) + [True], stem=0)

    def in_words(self, asked: Asked) -> Told:
        """The same asked in the published words; also the tags and the label are the model's."""
        regions = "".join(f"<region{k}>" for k in asked.regions)
        label = f"{LLAMA.prompt.before_label}{asked.label}"
        answer = f"<ground>{label}</ground><objects>{regions}</objects>"
        return Told(Task.detect(asked.label).text, answer)

    def _told(self, told: Told) -> Branch:
        given = self._builder.question(told.question, start=0).ids.tolist()
        answer = self._builder.answer(told.answer, start=0).ids.tolist()
        return Branch(given + answer, [False] * len(given) + [True] * len(answer), free=True)


def printed_box(box: Array) -> str:
    """Corners of a box in 0..1, in thousandths of the picture."""
    return str([round(1000 * float(value)) for value in box])


def scene_tensors(scene: Scene) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n, 80) scores, (n, 1016) probabilities and appearance, (n, 4) boxes, (25, 1000) cells."""
    coco = np.stack([region.coco for region in scene.regions])
    primary = np.stack([np.concatenate([r.imagenet, r.appearance]) for r in scene.regions])
    boxes = np.stack([region.box for region in scene.regions])
    return (torch.from_numpy(coco).float(), torch.from_numpy(primary).float(),
            torch.from_numpy(boxes).float(), torch.from_numpy(scene.cells).float())  # fmt: skip


class Lesson:
    """One scene as a loss."""

    def __init__(
        self, model: PointingModel, writer: SceneWriter, *, words_weight: float = 1.0
    ) -> None:
        """`words_weight`: of a token that is chosen among all, against one among regions."""
        self._words_weight = words_weight
        self._model = model
        self._writer = writer

    def embeddings(self, plan: LessonPlan) -> Tensor:
        """(length, hidden) with every slot filled."""
        coco, primary, boxes, cells = scene_tensors(plan.scene)
        embedded, connector = self._model.embed(plan.tree.ids), self._model.connector
        fillings = [(SlotType.REGION, connector(coco, primary, boxes).flatten(0, 1))]
        if (plan.trunk.slots == SlotType.IMAGE).any():
            fillings.append((SlotType.IMAGE, connector.cells(cells)))
        for kind, values in fillings:
            places = torch.nonzero(plan.trunk.slots == kind).flatten()
            embedded = embedded.index_copy(0, places, values)
        return embedded

    def loss(self, plan: LessonPlan) -> tuple[Tensor, list[tuple[str, bool]]]:
        """Mean loss, and of each question its kind and whether the whole answer is right."""
        tree = plan.tree
        hidden = self._model.read(self.embeddings(plan), tree.positions, tree.mask)
        hidden = hidden[tree.rows].float()
        rows = self._model.new_rows()
        losses = hidden.new_zeros(len(tree.rows))
        right = torch.zeros(len(tree.rows), dtype=torch.bool)
        closed = ~tree.free
        if closed.any():
            among = [*self._writer.regions[: len(plan.scene.regions)], self._writer.close]
            logits = hidden[closed] @ rows[torch.tensor(among) - NUM_KNOWN].T
            logits = logits[:, :-1] - logits[:, -1:]
            chances = [plan.chances[number] for number in tree.branch[closed].tolist()]
            wanted = torch.from_numpy(np.stack(chances)).float()
            each = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            losses[closed] = each.sum(-1)
            right[closed] = ((logits >= 0) == (wanted >= 0.5)).all(-1)
        if tree.free.any():
            logits = torch.cat([hidden[tree.free] @ self._model.known.T,
                                hidden[tree.free] @ rows.T], dim=-1)  # fmt: skip
            wanted = tree.targets[tree.free]
            losses[tree.free] = nn.functional.cross_entropy(logits, wanted, reduction="none")
            right[tree.free] = logits.argmax(-1) == wanted
        weights = torch.where(tree.free, self._words_weight, 1.0)
        answered = [
            (kind, bool(right[tree.branch == number].all()))
            for number, kind in enumerate(plan.kinds)
            if kind != _TURN
        ]
        return (losses * weights).sum() / weights.sum(), answered


def draw_lesson(
    scene: Scene,
    writer: SceneWriter,
    questions: Questioner,
    dice: random.Random,
    labels: int,
    *,
    alone: bool = False,
    absent: bool = True,
    others: float = 1.0,
) -> LessonPlan:
    """A scene with as many labels, and in a share of the draws some of every other question.

    Args:
        scene, writer, questions, dice: what is drawn from.
        labels: how many.
        alone: labels only.
        absent: also such as are not there; without, a scene of nothing has no labels.
        others: share of the scenes with some of every other question about what they show.
    """
    cells = dice.random() < (0.2 if alone else 0.6)
    asked = questions.labels(scene, labels if absent else 2 * labels)
    if not absent:
        asked = [one for one in asked if one.regions][:labels]
    found: list[tuple[str, Asked | Told]] = [
        ("label" if one.regions else "absent", one) for one in asked
    ]
    if not alone and asked and dice.random() < others:
        found += _other_questions(scene, writer, questions, dice, asked[0])
    if not alone and dice.random() < _TALK and (talk := questions.conversation()) is not None:
        found.append(("talk", talk))
    return writer.plan(scene, found, cells=cells)


def _other_questions(
    scene: Scene,
    writer: SceneWriter,
    questions: Questioner,
    dice: random.Random,
    asked: Asked,
) -> list[tuple[str, Asked | Told]]:
    drawn: list[tuple[str, Asked | Told | None]] = [
        ("described", questions.described(scene)),
        ("described", questions.described(scene)),
        ("likes", questions.likes(scene)),
        *(("named", one) for one in dict.fromkeys(questions.names(scene) for _ in range(_NAMED))),
        ("told", dice.choice((questions.yes_or_no, questions.lists))(scene)),
    ]
    if dice.random() < 0.25:
        drawn.append(("in words", writer.in_words(asked)))
    return [(kind, one) for kind, one in drawn if one is not None]
