"""The embedded model's training as one recipe: which stages, in which order, from which file.

Each stage's own module knows how; this one only knows where things lie.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from agent.errors import SettingsError
from agent.training import grounding, language, proposals, vision
from agent.training.artwork import build_atlas, build_backgrounds
from agent.training.grounding_model import Pretrained

logger = logging.getLogger(__name__)
RECIPE = Path(__file__).parent / "nano.yaml"
WEIGHTS = Path(__file__).parents[1] / "weights" / "nano"


@dataclass(frozen=True)
class NanoTraining:
    """Folders and hyperparameters of one training of the nano model."""

    artwork: Path
    """Cache of rendered artwork and photographs."""
    directory: Path
    """Checkpoints and logs, a folder per stage."""
    recipe: Path = RECIPE
    num_threads: int = 1
    """Two threads on two cores gain little while a worker composes scenes beside them."""

    @property
    def stages(self) -> dict[str, Callable[[], None]]:
        """Stage names to what runs them, in order."""
        return {
            "artwork": self.artwork_stage,
            "proposals": lambda: proposals.run(
                self.artwork, self.directory / "proposals", **self._settings("proposals")
            ),
            "language": lambda: language.run(
                self.directory / "language", **self._settings("language")
            ),
            "vision": lambda: vision.run(
                self.artwork,
                self.directory / "vision",
                self.directory / "language",
                **self._settings("vision"),
            ),
            "align": lambda: self._ground("align", None),
            "instruct": lambda: self._ground("instruct", self.directory / "align"),
            "export": lambda: grounding.export(
                self.directory / "instruct", self.pretrained, WEIGHTS
            ),
        }

    def run(self, stage: str) -> None:
        """Run one stage, or `all` of them.

        Raises:
            SettingsError: no such stage, or the recipe lacks it.
        """
        if stage != "all" and stage not in self.stages:
            raise SettingsError(f"no stage {stage!r}; stages: {', '.join(self.stages)}, all")
        torch.set_num_threads(self.num_threads)
        for name, run in self.stages.items():
            if stage in ("all", name):
                logger.info("stage %s", name)
                run()

    def artwork_stage(self) -> None:
        """Render the artwork and cut the photographs, unless they are there."""
        if not (self.artwork / "backgrounds").is_dir():
            build_atlas(self.artwork)
            build_backgrounds(self.artwork)

    @property
    def pretrained(self) -> Pretrained:
        """Folders of what both stages of the paper start from."""
        return Pretrained(
            self.directory / "vision", self.directory / "language", self.directory / "proposals"
        )

    def _ground(self, stage: str, start_from: Path | None) -> None:
        grounding.run(
            self.artwork,
            self.directory / stage,
            self.pretrained,
            stage=stage,
            start_from=start_from,
            **self._settings(stage),
        )

    def _settings(self, stage: str) -> dict[str, Any]:
        recipe = yaml.safe_load(self.recipe.read_text())
        if stage not in recipe:
            raise SettingsError(f"{self.recipe} has no section {stage!r}")
        return {name: float(v) if name == "rate" else int(v) for name, v in recipe[stage].items()}
