"""The embedded model's training as one recipe: which stages, in which order, from which file.

Each stage's own module knows how; this one only knows where things lie.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from agent.errors import SettingsError
from agent.model_directory import DEFAULT_MODEL, find_model
from agent.training import grounding, language, proposals, refinement, reinforcement, vision
from agent.training.annotations import DataSource
from agent.training.artwork import build_atlas, build_backgrounds
from agent.training.curves import draw_curve
from agent.training.grounding import AlignRecipe, InstructRecipe
from agent.training.grounding_model import Pretrained
from agent.training.loop import CHECKPOINT
from agent.training.recipe import Recipe, load_recipe
from agent.training.workers import Workers

logger = logging.getLogger(__name__)
WEIGHTS = Path(__file__).parents[1] / "weights" / "nano"
PAPER_STAGES = ("align", "instruct")
"""Those that can be trained on pictures of one's own."""


@dataclass(frozen=True)
class NanoTraining:
    """Folders and hyperparameters of one training of the nano model."""

    artwork: Path
    """Cache of rendered artwork and photographs."""
    directory: Path
    """Checkpoints and logs, a folder per stage."""
    recipe: Recipe = field(default_factory=load_recipe)
    base: str | None = None
    """A model directory (or 'nano') that the paper's two stages start from in place of this
    training's own pretraining."""
    output: Path = WEIGHTS
    """What `export` writes."""
    device: str = "cpu"
    num_threads: int = 1
    """Two threads on two cores gain little while a worker composes scenes beside them."""

    @property
    def stages(self) -> dict[str, Callable[[], None]]:
        """Stage names to what runs them, in order."""
        recipe, at, device = self.recipe, self.directory, torch.device(self.device)
        return {
            "artwork": self.artwork_stage,
            "proposals": lambda: proposals.run(
                self.artwork, at / "proposals", recipe.proposals, device=device
            ),
            "language": lambda: language.run(at / "language", recipe.language, device=device),
            "vision": lambda: vision.run(
                self.artwork, at / "vision", at / "language", recipe.vision, device=device
            ),
            "align": lambda: self._ground("align", recipe.align),
            "instruct": lambda: self._ground("instruct", recipe.instruct),
            "export": self.export_stage,
        }

    def run(self, stage: str) -> None:
        """Run one stage, `all` of them, `refine`, `reinforce`, or `plot` the curves there are.

        Raises:
            SettingsError: no such stage.
        """
        others = {"plot": self.plot, "refine": self.refine, "reinforce": self.reinforce}
        if stage in others:
            others[stage]()
            return
        check_stage(stage)
        torch.set_num_threads(self.num_threads)
        for name, run in self.stages.items():
            if stage in ("all", name):
                logger.info("stage %s", name)
                run()

    def plot(self) -> None:
        """Draw a picture of the curve of every stage that has logged one."""
        for log in sorted(self.directory.glob("**/log.jsonl")):
            logger.info("drew %s", draw_curve(log.parent))

    def refine(self) -> None:
        """Let the eyes of a trained model go on learning; `instruct` goes on from there.

        Raises:
            SettingsError: no model to start from.
        """
        if self.base is None:
            raise SettingsError("say which model is to be refined: --base nano, or a folder")
        torch.set_num_threads(self.num_threads)
        refinement.run(
            self.artwork, self.directory / "refine", self.pretrained, self.recipe.instruct,
            self.recipe.regions, self.recipe.refine, device=torch.device(self.device),
        )  # fmt: skip

    def reinforce(self) -> None:
        """Go on from a trained model by reinforcement; writes another model directory.

        Raises:
            SettingsError: it would overwrite the shipped weights.
        """
        if self.output == WEIGHTS:
            raise SettingsError("say where the reinforced model is to be written: --output DIR")
        torch.set_num_threads(self.num_threads)
        home = self.directory / "reinforce"
        figures = reinforcement.run(
            self.artwork, home, self.output, self.recipe.reinforce, model=self.base or DEFAULT_MODEL
        )
        for when, rewards in figures.items():
            logger.info("%s: %s", when, rewards)

    def export_stage(self) -> None:
        """Write the model directory.

        Raises:
            SettingsError: a training from another model would overwrite the shipped weights.
        """
        if self.base is not None and self.output == WEIGHTS:
            raise SettingsError("say where the model is to be written: --output DIR")
        if Workers.current().leads:
            last = self.directory / "instruct"
            if self.base is not None and not (last / CHECKPOINT).is_file():
                last = self._stage_before("instruct") or last
            grounding.export(last, self.pretrained, self.output)

    def artwork_stage(self) -> None:
        """Render the artwork and cut the photographs, unless they are there."""
        with Workers.current().leader_first():
            if not (self.artwork / "backgrounds").is_dir():
                build_atlas(self.artwork)
                build_backgrounds(self.artwork)

    @property
    def pretrained(self) -> Pretrained:
        """Folders of what both stages of the paper start from."""
        at = self.directory
        model = None if self.base is None else find_model(self.base).path
        return Pretrained(at / "vision", at / "language", at / "proposals", model)

    def _ground(self, stage: str, recipe: AlignRecipe | InstructRecipe) -> None:
        grounding.run(
            self.artwork,
            self.directory / stage,
            self.pretrained,
            recipe,
            self.recipe.regions,
            start_from=self._stage_before(stage),
            device=torch.device(self.device),
        )

    def _stage_before(self, stage: str) -> Path | None:
        """What a stage of the paper goes on from; None for what comes before both."""
        aligned, refined = self.directory / "align", self.directory / "refine"
        if self.base is None:
            return aligned if stage == "instruct" else None
        # A base has been through both: whatever was done to it here may be left out.
        before = [aligned, refined] if stage == "instruct" else [refined]
        return next((home for home in before if (home / CHECKPOINT).is_file()), None)


_STAGES = ("artwork", "proposals", "language", "vision", "align", "instruct", "export")


def check_stage(stage: str) -> None:
    """Raises SettingsError unless `stage` is one of those that workers share, or `all`."""
    if stage not in (*_STAGES, "all", "refine"):
        raise SettingsError(
            f"no stage {stage!r}; stages: {', '.join(_STAGES)}, all, refine, reinforce, plot"
        )


def with_own_pictures(
    recipe: Recipe, stage: str, data: tuple[DataSource, ...], steps: int | None
) -> Recipe:
    """The recipe with other pictures, or another number of steps, in one stage.

    Raises:
        SettingsError: the stage cannot have what is asked for.
    """
    if data and stage not in PAPER_STAGES:
        raise SettingsError(
            f"only {' and '.join(PAPER_STAGES)} learn from annotated pictures, not {stage}"
        )
    section = getattr(recipe, stage, None)
    if section is None:
        if steps is not None:
            raise SettingsError(f"stage {stage} has no steps; name one stage that learns")
        return recipe
    if data:
        section = replace(section, data=data)
    if steps is not None:
        section = replace(section, loop=replace(section.loop, steps=steps))
    return replace(recipe, **{stage: section})
