"""Teaching a pretrained language model to point, on symbolic scenes, without forgetting.

Stage 1 trains the connector and the new tokens with the language model frozen; stage 2 also
trains low-rank changes of its linear layers. Every step reads some scenes with many questions each
(`agent.training.branches`) and, so that nothing is forgotten, some text on which the model is to
say what it said before training (knowledge distillation against itself). Resumable: the state of
a run is one file.

    groundstream train pointing --head efficientnet_lite0.safetensors --directory DIR
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from agent.checked_settings import checked, with_changes
from agent.model.checkpoint_files import header, tensors
from agent.model.configuration import pocket_config
from agent.model.efficientnet import EfficientNetLite0
from agent.model.low_rank import adapter_state, load_adapter, mean_of
from agent.model.smollm2 import smollm2_shape
from agent.tokenizer import PromptTokenizer
from agent.training.own_answers import read as read_answers
from agent.training.picture_evidence import ClassExchange, EvidenceBank
from agent.training.pointing_model import NEW_TOKENS, PointingModel
from agent.training.rehearsal import Rehearsal, plain_texts
from agent.training.scene_lessons import Lesson, LessonPlan, SceneWriter, draw_lesson
from agent.training.scene_questions import Questioner, Told, held_out, shows_held_out
from agent.training.symbolic_scenes import Scene, SceneMaker
from agent.training.workers import Workers
from agent.vocabulary import vocabulary
from groundstream.errors import SettingsError

_FULL_SHARE = 0.3
"""Of the scenes after pointing is learned that are as large as they may be."""


@checked
@dataclass(frozen=True)
class PointingRecipe:
    """The numbers of a run."""

    align_steps: int = 60
    """Stage 1: connector and new tokens alone."""
    pointing_steps: int = 350
    """So many steps see small scenes, where pointing is learned at a third of the price."""
    growing_steps: int = 250
    """Over so many further steps scenes reach full size and doubt."""
    steps: int = 1500
    scenes_per_step: int = 2
    """Of each worker."""
    labels_per_scene: tuple[int, int] = (16, 48)
    """While pointing is learned, and after."""
    others_share: float = 0.35
    """Of the scenes after pointing is learned, with questions of every other kind."""
    most_regions: tuple[int, int] = (12, 24)
    doubt: tuple[float, float] = (0.4, 1.0)
    """The most of any scene, at the end of either part: 1 is that of photographs."""
    picture_share: float = 0.5
    """Of the scenes after pointing is learned, where evidence of pictures is at hand."""
    words_weight: float = 0.5
    """Weight of a token that is chosen among all, against one chosen among regions."""
    rank: int = 16
    adapter_rate: float = 5e-4
    connector_rate: float = 2e-4
    offset_rate: float = 1e-2
    token_rate: float = 3e-4
    text_tokens: int = 96
    text_weight: float = 1.0
    absent: bool = True
    """Also ask for what is not there; without, an ablation."""
    printed: bool = False
    """Answers are corners in words in place of region tokens: an ablation."""
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> PointingRecipe:
        """The usual numbers, with what a YAML file says in their place.

        Raises:
            SettingsError: the file cannot be read, or has an unknown key or an impossible value.
        """
        return with_changes(cls(), path)

    def continued(self) -> PointingRecipe:
        """Of a run that starts with a model that points already."""
        return replace(self, align_steps=0, pointing_steps=0, growing_steps=0)

    def is_early(self, step: int) -> bool:
        """Whether pointing is still being learned, on small scenes."""
        return step < self.pointing_steps

    def sizes(self, step: int) -> tuple[int, float]:
        """The most regions and the most doubt of a step's scenes."""
        if self.is_early(step):
            return self.most_regions[0], self.doubt[0] * step / self.pointing_steps
        grown = 1.0
        if self.growing_steps:
            grown = min(1.0, (step - self.pointing_steps) / self.growing_steps)
        fewer, more = self.most_regions
        less, much = self.doubt
        return fewer + round(grown * (more - fewer)), less + grown * (much - less)

    def rate(self, step: int) -> float:
        """What all learning rates are multiplied by: a short rise, then down to nothing."""
        left = (self.steps - step) / max(1, self.steps - self.pointing_steps)
        return min(1.0, (step + 1) / 30) * min(1.0, max(0.03, left))


@torch.no_grad()
def evaluate(model: PointingModel, head: np.ndarray, *, scenes: int, seed: int) -> dict[str, float]:
    """Whole answers right (teacher forcing: every choice of an answer right), by size and words."""
    writer, words = SceneWriter(PromptTokenizer(model.tokenizer)), vocabulary()
    lesson = Lesson(model, writer)
    found: dict[str, list[float]] = defaultdict(list)
    for count in (5, 12, 24):
        maker = SceneMaker(words, head, seed + count)
        seen = Questioner(words, seed + count)
        unseen = Questioner(words, seed + count, may_ask=held_out)
        for _ in range(scenes):
            scene = maker.scene(count)
            questions = (
                ("seen", seen.labels(scene, 16)),
                ("unseen", unseen.labels(scene, 4) if shows_held_out(scene) else []),
            )
            asked = [
                (kind if one.regions else f"{kind} absent", one)
                for kind, labels in questions
                for one in labels
            ]
            _, answered = lesson.loss(writer.plan(scene, asked, cells=False))
            for kind, right in answered:
                found[f"{kind} {count}"].append(float(right))
    return {key: round(float(np.mean(values)), 3) for key, values in sorted(found.items())}


class Lessons:
    """Draws the scenes of a run, with their questions."""

    def __init__(
        self,
        recipe: PointingRecipe,
        head: np.ndarray,
        tokenizer: Tokenizer,
        *,
        seed: int,
        bank: EvidenceBank | None,
        conversation: Sequence[Told],
    ) -> None:
        words = vocabulary()
        self.writer = SceneWriter(PromptTokenizer(tokenizer), printed=recipe.printed)
        self._recipe = recipe
        self._maker = SceneMaker(words, head, seed + 1)
        self._questions = Questioner(words, seed + 2, conversation=conversation)
        self._dice, self._chance = random.Random(seed + 3), np.random.default_rng(seed + 4)
        self._exchange = ClassExchange(words, self._chance)
        self._bank = bank

    def draw(self, step: int) -> LessonPlan | None:
        """One of a step; none where nothing can be asked: of a scene of nothing, without absent
        labels."""
        recipe, dice = self._recipe, self._dice
        is_early = recipe.is_early(step)
        plan = draw_lesson(
            self._scene(step, is_early), self.writer, self._questions, dice,
            recipe.labels_per_scene[0 if is_early else 1],
            alone=is_early, absent=recipe.absent, others=recipe.others_share,
        )  # fmt: skip
        return plan if len(plan.tree.rows) else None

    def _scene(self, step: int, is_early: bool) -> Scene:
        recipe, dice = self._recipe, self._dice
        most_regions, most_doubt = recipe.sizes(step)
        self._maker.doubt = dice.uniform(0.5 * most_doubt, most_doubt)
        # Full pages are what photographs mostly give, and small ones are learned faster.
        is_full = not is_early and dice.random() < _FULL_SHARE
        count = most_regions if is_full else dice.randint(1, most_regions)
        if is_early or self._bank is None or dice.random() >= recipe.picture_share:
            return self._maker.scene(count)
        regions = self._bank.draw(count, self._chance)
        return self._maker.of(self._exchange.exchange(regions) if dice.random() < 0.5 else regions)


class PointingRun:
    """A run whose state lies in a folder: goes on from there, or begins."""

    def __init__(
        self,
        recipe: PointingRecipe,
        head: np.ndarray,
        texts: list[list[str]],
        output: Path,
        *,
        start: Path | None = None,
        bank: EvidenceBank | None = None,
        conversation: Sequence[Told] = (),
    ) -> None:
        """
        Args:
            recipe: every number.
            head: (1000, width) weights of the ImageNet classifier's last layer.
            texts: sources of text to rehearse.
            output: folder of the state.
            start: a new run begins with what that model's folder has learned, and with scenes of
                full size and doubt.
            bank: evidence of pictures.
            conversation: questions that have nothing to do with a scene.
        """
        output.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed)
        self._recipe = recipe if start is None else recipe.continued()
        self._head, self._output, self._workers = head, output, Workers.current()
        self._model = PointingModel(recipe.rank)
        self._model.name_tables(vocabulary())
        self._groups = [
            {"params": [p for layer in self._model.adapted for p in (layer.lora_a, layer.lora_b)],
             "lr": recipe.adapter_rate},
            {"params": list(self._model.connector.parameters()), "lr": recipe.connector_rate},
            {"params": [self._model.token_offset], "lr": recipe.offset_rate},
            {"params": [self._model.token_delta], "lr": recipe.token_rate},
        ]  # fmt: skip
        self._trained = [p for group in self._groups for p in group["params"]]  # type: ignore[attr-defined]
        self._rates = [float(group["lr"]) for group in self._groups]  # type: ignore[arg-type]
        self._optimiser = torch.optim.AdamW(self._groups, betas=(0.9, 0.98), weight_decay=0.0)
        self.step = _restored(self._model, self._optimiser, output / "state.pt", start)
        seed = recipe.seed + 1000 * self.step + 1_000_000 * self._workers.rank
        self._lessons = Lessons(
            self._recipe, head, self._model.tokenizer, seed=seed, bank=bank,
            conversation=conversation,
        )  # fmt: skip
        self._lesson = Lesson(self._model, self._lessons.writer, words_weight=recipe.words_weight)
        self._rehearsal = Rehearsal(self._model, texts, recipe.text_tokens, seed)
        self._tally: dict[str, list[float]] = defaultdict(list)

    def train(self, *, minutes: float) -> None:
        """Step until the recipe's end, or for so long; several workers see different scenes and
        step together."""
        started = time.monotonic()
        while self.step < self._recipe.steps:
            self._take_step()
            self.step += 1
            over = self._workers.agreed(time.monotonic() - started > 60 * minutes)
            if self._workers.leads:
                self._report(round(time.monotonic() - started), over)
            if over:
                return

    def _take_step(self) -> None:
        recipe, step = self._recipe, self.step
        is_aligning = step < recipe.align_steps
        for layer in self._model.adapted:
            layer.lora_a.requires_grad_(not is_aligning)
            layer.lora_b.requires_grad_(not is_aligning)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * recipe.rate(step)
        for _ in range(recipe.scenes_per_step):
            plan = self._lessons.draw(step)
            if plan is None:
                continue
            loss, answered = self._lesson.loss(plan)
            (loss / recipe.scenes_per_step).backward()
            self._tally["loss"].append(float(loss.detach()))
            for kind, right in answered:
                self._tally[kind].append(float(right))
        is_early = recipe.is_early(step)
        if not is_aligning and recipe.text_weight and (step % 2 == 0 or not is_early):
            kept = self._rehearsal.loss()
            (recipe.text_weight * kept).backward()
            self._tally["text"].append(float(kept.detach()))
        self._workers.average_gradients(self._trained)
        norm = nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._tally["norm"].append(float(norm))
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def _report(self, seconds: int, over: bool) -> None:
        """Log, save and measure after a step, each now and then and at the end."""
        is_last = over or self.step == self._recipe.steps
        if self.step % 20 == 0 or is_last:
            means = {k: round(float(np.mean(v)), 3) for k, v in sorted(self._tally.items())}
            _log(self._output, {"step": self.step, "seconds": seconds, **means})
            self._tally.clear()
        if self.step % 50 == 0 or is_last:
            _save(self._model, self._optimiser, self.step, self._recipe, self._output)
        if (self.step % 200 == 0 or is_last) and not self._recipe.printed:
            figures = evaluate(self._model, self._head, scenes=8, seed=99)
            _log(self._output, {"step": self.step, "eval": figures})


def _log(output: Path, line: Mapping[str, object]) -> None:
    with (output / "log.jsonl").open("a") as log:
        print(json.dumps(line), file=log)


def _restored(
    model: PointingModel, optimiser: torch.optim.Optimizer, path: Path, start: Path | None
) -> int:
    """The step to go on from: an interrupted run's, or the first, with what `start` has learned."""
    if not path.is_file():
        if start is not None:
            model.take_over(_learned(start))
        return 0
    state = torch.load(path, weights_only=True)
    load_adapter(model.language, state["adapter"])
    model.connector.load_state_dict(state["connector"])
    model.token_offset.data.copy_(state["offset"])
    model.token_delta.data.copy_(state["delta"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _save(
    model: PointingModel,
    optimiser: torch.optim.Optimizer,
    step: int,
    recipe: PointingRecipe,
    output: Path,
) -> None:
    """State to go on with, and what the service loads; a run killed meanwhile loses neither."""
    for name, write in (
        ("state.pt", lambda path: torch.save(
            {"adapter": adapter_state(model.language), "connector": model.connector.state_dict(),
             "offset": model.token_offset.data, "delta": model.token_delta.data,
             "optimiser": optimiser.state_dict(), "step": step}, path)),
        ("language.safetensors", lambda path: save_file(
            {k: v.contiguous() for k, v in model.trained_state().items()}, path)),
    ):  # fmt: skip
        written = output / f"{name}.part"
        write(written)
        written.replace(output / name)
    (output / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")


def _learned(folder: Path) -> dict[str, Tensor]:
    """What the language side of a run, or of a model, has learned.

    Raises:
        CheckpointMismatch: the folder holds nothing of that kind.
    """
    path = folder / "language.safetensors"
    return dict(tensors(path, header(path), device="cpu"))


def classifier_head(path: Path) -> np.ndarray:
    """(1000, 1280) weights of the ImageNet classifier's last layer.

    Raises:
        CheckpointMismatch: the file does not hold the classifier.
    """
    weight = EfficientNetLite0.from_file(path).classifier.weight
    return np.asarray(weight.detach().numpy())


def export(run: Path, folder: Path, *, mean_with: Path | None = None) -> None:
    """What a run has learned as the embedded model's folder holds it: configuration and float16.

    The vision parts' weights are there already (`agent.training.vision_parts`).

    Args:
        run: folder of the run.
        folder: to write.
        mean_with: write the mean of the run and of the model that it began with, which finds more
            than either (a model soup, arXiv 2203.05482).

    Raises:
        CheckpointMismatch: one of the folders holds nothing of that kind.
    """
    learned = _learned(run)
    if mean_with is not None:
        learned = mean_of(learned, _learned(mean_with))
    folder.mkdir(parents=True, exist_ok=True)
    # Calibration is a few numbers, and powers of them matter: they stay float32.
    halved = {k: v.half() if v.ndim > 1 else v.float() for k, v in learned.items()}
    save_file({k: v.contiguous() for k, v in halved.items()}, folder / "language.safetensors")
    config = pocket_config(smollm2_shape(num_new_tokens=len(NEW_TOKENS)))
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def run(
    recipe: PointingRecipe,
    head: Path,
    output: Path,
    *,
    wordnet: Path | None = None,
    texts: Sequence[Path] = (),
    start: Path | None = None,
    evidence: Path | None = None,
    own_answers: Path | None = None,
    minutes: float = math.inf,
    threads: int = 1,
) -> None:
    """Train with what lies in files; see `PointingRun`.

    Args:
        recipe: every number.
        head: the classifier's weights.
        output: state of the run.
        wordnet, texts: `data.noun` of WordNet and folders of text, to rehearse.
        start: a model's folder; a new run begins with what it has learned.
        evidence: of pictures, as `groundstream train evidence` writes it.
        own_answers: folder of `groundstream train own-answers`: rehearsed as text, and asked
            beside scenes.
        minutes: stop then; another run goes on.
        threads: of this process.

    Raises:
        CheckpointMismatch: `head` does not hold the classifier, or `start` no such model.
        SettingsError: there is nothing to rehearse, or a file of another kind was given.
    """
    torch.set_num_threads(threads)
    rehearsed = plain_texts(wordnet, [*texts, *([own_answers] if own_answers else [])])
    if recipe.text_weight and not any(rehearsed):
        raise SettingsError(
            "there is no text to rehearse: give --wordnet, --texts or --own-answers"
        )
    PointingRun(
        recipe,
        classifier_head(head),
        rehearsed,
        output,
        start=start,
        bank=None if evidence is None else EvidenceBank.read(evidence),
        conversation=[Told(*pair) for pair in (read_answers(own_answers) if own_answers else ())],
    ).train(minutes=minutes)
