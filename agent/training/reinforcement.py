"""Reinforcement learning of where to look: GRPO on the language model with ERGO's rewards.

The model is shown a contact sheet of a high-resolution scene (`zoom_scenes`) and asked where or how
many; several answers are drawn and rewarded (`rollouts`), and made likelier or less likely as they
are better or worse than their group (GRPO, arXiv 2402.03300, section 4.1). Each answer serves one
update, so its ratio to the model that drew it is one and nothing is clipped. Only the language
model is trained. Our own loop: trainers that can be had compute likelihoods from ids and pixels
by a processor, while this model is given embedded regions.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agent.checked_settings import checked, with_changes
from agent.model.checkpoint import load_model, save_language
from agent.model.language_model import LanguageModel
from agent.model.positions import SlotType
from agent.model.vlm_fo1 import VLMFO1
from agent.model_directory import DEFAULT_MODEL, find_model
from agent.model_tokenizer import model_tokenizer
from agent.pipeline import Pipeline
from agent.region_cache import MemoryRegionCache
from agent.stages import LocalStages
from agent.tokenizer import PromptTokenizer
from agent.training.artwork import load_concepts
from agent.training.loop import LoopSettings, Objective, Terms, train
from agent.training.mixture import Turn
from agent.training.packing import IGNORED, PackedBatch, PackedScene, collate_packed
from agent.training.rewards import Rewards, RewardWeights
from agent.training.rollouts import Actor, Drawing, Rollouts, SheetPrompts, SheetQuestions
from agent.training.scenes import SceneComposer
from agent.training.workers import Figures
from agent.training.zoom_scenes import (
    Sheet,
    SheetMaker,
    high_resolution_composer,
    load_sheets,
    make_sheets,
    save_sheets,
    verified,
)

logger = logging.getLogger(__name__)
PARTS = ("region", "box", "accuracy", "format")


@checked
@dataclass(frozen=True)
class ReinforcementSettings:
    """Hyperparameters of one run."""

    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(
            200, 5e-5, warmup_steps=10, decay_share=0.5, weight_decay=0.0, precision="float32",
            save_every=25,
        )
    )  # fmt: skip
    drawing: Drawing = field(default_factory=Drawing)
    weights: RewardWeights = field(default_factory=RewardWeights)
    kl: float = 0.04
    """Weight of staying near the model that learning began with (beta)."""
    num_scenes: int = 300
    """Composed to practise on."""
    num_held_out: int = 40
    """Composed to measure on."""
    num_measured: int = 50
    """Steps' worth of questions about those."""


def reinforce(
    model: VLMFO1,
    tokenizer: PromptTokenizer,
    sheets: Sequence[Sheet],
    held_out: Sequence[Sheet],
    labels: Mapping[int, str],
    settings: ReinforcementSettings,
    directory: Path,
) -> dict[str, dict[str, float]]:
    """Train `model`'s language model; `directory` gets checkpoint.pt, log.jsonl and rewards.json.

    Args:
        model: the supervised start, in single precision.
        tokenizer: its own.
        sheets: to practise on.
        held_out: to measure on, before and after.
        labels: names of the concepts that may be asked for, by id.
        settings: hyperparameters.
        directory: resumed from, if a run was interrupted there.

    Returns:
        "before" and "after": the mean of each reward and of their total over held-out questions,
        answered greedily.
    """
    language = model.language_model
    assert language is not None
    language.model.set_attn_implementation("eager")
    questions = SheetQuestions(sheets, labels, settings.drawing)
    prompts = SheetPrompts(model, tokenizer, questions.sheets)
    learner = Learner(language, prompts, settings)
    actor = Actor(language, prompts, settings.drawing)
    trial = SheetQuestions(held_out, labels, settings.drawing)
    shown = SheetPrompts(model, tokenizer, trial.sheets)

    def measured() -> dict[str, float]:
        judged = Actor(language, shown, settings.drawing)
        try:
            asked = [judged.greedy(trial.draw(step)) for step in range(settings.num_measured)]
        finally:
            judged.close()
        earned = [one for rewards in asked for one in rewards]
        return mean_rewards(earned, [1] * len(earned), settings.weights)

    before = measured()

    def rollouts(first: int, stride: int) -> Iterator[list[Rollouts]]:
        for step in range(first, settings.loop.steps, stride):
            actor.follow(language)
            yield actor.draw(questions.draw(step), step)

    objective = Objective(rollouts, learner.losses)
    try:
        train(language, objective, settings.loop, directory)
    finally:
        actor.close()
    figures = {"before": before, "after": measured()}
    (directory / "rewards.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def mean_rewards(
    earned: Sequence[Rewards], times: Sequence[int], weights: RewardWeights
) -> dict[str, float]:
    """Mean of each part and of the total, each answer counted as often as it was drawn."""
    rows = [[*dataclasses.astuple(one), one.total(weights)] for one in earned]
    means = np.average(np.array(rows), axis=0, weights=times).tolist()
    return dict(zip((*PARTS, "reward"), means, strict=True))


def load_settings(path: Path | None) -> ReinforcementSettings:
    """Hyperparameters, with what a YAML file says in place of the usual ones.

    Raises:
        SettingsError: the file cannot be read, or has an unknown key or an impossible value.
    """
    usual = ReinforcementSettings()
    return usual if path is None else with_changes(usual, path)


def run(
    artwork: Path,
    directory: Path,
    output: Path,
    settings: ReinforcementSettings,
    *,
    model: str = DEFAULT_MODEL,
) -> dict[str, dict[str, float]]:
    """Everything from a trained model to a reinforced one; see `reinforce`.

    Args:
        artwork: folder of `groundstream train artwork`.
        directory: sheets, checkpoint and log; a run that was interrupted goes on from them.
        output: where the reinforced model is written.
        settings: hyperparameters.
        model: the supervised start, a name or a folder; it also verifies regions.
    """
    directory.mkdir(parents=True, exist_ok=True)
    composer = high_resolution_composer(artwork)
    sheets, held_out = asyncio.run(
        _sheets(
            composer,
            directory,
            model,
            {"train": settings.num_scenes, "val": settings.num_held_out},
        )
    )
    folder = find_model(model).path
    trained = load_model(folder)
    names = [concept.label for concept in load_concepts()]
    asked = {concept: names[concept] for concept in composer.settings.concepts or ()}
    tokenizer = model_tokenizer(folder, trained.config)
    figures = reinforce(trained, tokenizer, sheets, held_out, asked, settings, directory)
    shutil.copytree(folder, output, dirs_exist_ok=True)
    save_language(trained, output, dtype=torch.bfloat16)
    return figures


async def _sheets(
    composer: SceneComposer, directory: Path, model: str, wanted: Mapping[str, int]
) -> list[list[Sheet]]:
    """Sheets of each split, made unless they are there, and what `model` says of their regions."""
    stages = LocalStages.from_pretrained(model)
    pipeline = Pipeline(stages, MemoryRegionCache(), model_digest=find_model(model).digest)
    made = []
    try:
        for split, num in wanted.items():
            path = directory / f"sheets_{split}.pt"
            if not path.is_file():
                maker = SheetMaker(pipeline)
                save_sheets(await make_sheets(maker, composer, split, range(num)), path)
            made.append(await verified(stages, load_sheets(path)))
    finally:
        stages.close()
    return made


class Learner:
    """One update of the language model from rewarded answers."""

    def __init__(
        self, language: LanguageModel, prompts: SheetPrompts, settings: ReinforcementSettings
    ) -> None:
        self._language = language
        self._reference = copy.deepcopy(language).requires_grad_(False)
        self._prompts = prompts
        self._settings = settings

    def losses(self, drawn: list[Rollouts]) -> tuple[Terms, Figures]:
        """Policy gradient and distance from the start; the rewards of what was drawn."""
        weights = self._settings.weights
        taught = [one for one in drawn if any(one.advantages(weights))]
        figures = mean_rewards(
            [reward for one in drawn for reward in one.rewards],
            [count for one in drawn for count in one.times],
            weights,
        ) | {"taught": len(taught) / len(drawn)}
        if not taught:
            # Nothing to learn from: all answers to each question earned the same.
            return {"policy": torch.zeros((), requires_grad=True)}, figures
        batch, (times, advantage) = self._packed(taught)
        embedded = self._embedded(batch, taught)
        with torch.no_grad():
            reference = token_logs(self._reference, embedded.detach(), batch)
        own = token_logs(self._language, embedded, batch)
        # Schulman's estimate: never negative, and without bias for answers that were drawn.
        apart = (reference - own).exp() - (reference - own) - 1.0
        num = len(taught) * self._settings.drawing.group
        policy, kl = -(times * advantage * own).sum() / num, (times * apart).sum() / num
        return {"policy": policy, "kl": self._settings.kl * kl}, figures

    def _packed(self, taught: Sequence[Rollouts]) -> tuple[PackedBatch, tuple[Tensor, Tensor]]:
        """The answers as one batch, and for each of their tokens its weights.

        Returns:
            The batch; then, in the order of `token_logs`, how often its answer was drawn over the
            answer's length, and the answer's advantage.
        """
        scenes, times, advantages = [], [], []
        for one in taught:
            turns = [Turn("rollout", one.question.task.text, "")] * len(one.ids)
            scenes.append(
                PackedScene.questions(
                    self._prompts.builder,
                    len(one.question.rows),
                    turns,
                    self._prompts.grids[one.question.number],
                    written=one.ids,
                )
            )
            advantage = one.advantages(self._settings.weights)
            for ids, count, value in zip(one.ids, one.times, advantage, strict=True):
                times += [count / len(ids)] * len(ids)
                advantages += [value] * len(ids)
        return collate_packed(scenes), (torch.tensor(times), torch.tensor(advantages))

    def _embedded(self, batch: PackedBatch, taught: Sequence[Rollouts]) -> Tensor:
        embeddings = self._language.embed(batch.ids)
        asked, prompts = [one.question for one in taught], self._prompts
        for kind, parts in (
            (SlotType.IMAGE, [prompts.image[one.number] for one in asked]),
            (SlotType.REGION, [prompts.shown(one) for one in asked]),
        ):
            here = batch.slots == kind
            if here.any():
                values = torch.cat(parts).to(embeddings.dtype)
                embeddings = embeddings.masked_scatter(here[..., None], values)
        return embeddings


def token_logs(language: LanguageModel, embeddings: Tensor, batch: PackedBatch) -> Tensor:
    """(answer tokens,) log likelihood of every answer token, in the order of batch and position."""
    hidden = language(embeddings, batch.positions, attention_mask=batch.mask)
    following = batch.labels[:, 1:]
    counted = following != IGNORED
    logits = language.logits(hidden[:, :-1][counted]).float()
    return -nn.functional.cross_entropy(logits, following[counted], reduction="none")
