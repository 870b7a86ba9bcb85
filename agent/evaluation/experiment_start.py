"""What the experiments that train start from, and the two stages of the paper run from there.

Either a training of one's own, or a model directory. A directory holds no model as it was before
alignment, so that one is made: the towers are as they stand (stage 2 of the recipe does not touch
them), the connector is new, and the language model goes back to symbols for some steps. Knows no
figure.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from agent.model.projector import build_projector
from agent.training import language
from agent.training.connector import read_name_map, warm_up_connector
from agent.training.grounding import GroundingSetup, freeze_for
from agent.training.grounding_model import GroundingTraining
from agent.training.language import LanguagePretraining
from agent.training.mixture import MixtureSettings
from agent.training.nano import NanoTraining
from agent.training.recipe import Recipe
from agent.training.region_features import RegionPool
from agent.training.rehearsal import RehearsalSettings, Speller, rehearse

EXPERIMENTS_RECIPE = Path(language.__file__).parent / "experiments.yaml"


@dataclass(frozen=True)
class ExperimentStart:
    """A model that has not been aligned, and regions to align it on."""

    setup: GroundingSetup
    pool: RegionPool
    recipe: Recipe
    home: Path
    """Everything that is trained is kept here, and not trained again."""
    base: GroundingSetup | None = None
    """The model directory's model as it is, where the start was made from one."""

    @classmethod
    def load(cls, training: NanoTraining) -> ExperimentStart:
        """From the training's own pretraining, or from its base.

        Raises:
            SourceError: a pretraining stage has not been run.
        """
        torch.set_num_threads(training.num_threads)
        recipe, home = training.recipe, training.directory / "experiments"
        home.mkdir(parents=True, exist_ok=True)
        setup = GroundingSetup.load(training.artwork, training.pretrained, recipe.instruct)
        cache = home / f"regions-{recipe.regions.batches}.pt"
        pool = setup.region_pool(cache, recipe.regions)
        base = None
        if training.base is not None:
            read_name_map(setup.module, pool)
            base = replace(setup, module=copy.deepcopy(setup.module))
            back_to_symbols(setup.module, home / "language", recipe.language)
        return cls(setup, pool, recipe, home, base)

    @property
    def trained(self) -> Tensor:
        """Ids of the concepts that are drawn."""
        return torch.tensor(self.setup.concepts)

    @property
    def rehearsal(self) -> RehearsalSettings:
        """Stage 2's."""
        return self.recipe.instruct.rehearsal

    def aligned(self, seed: int) -> GroundingSetup:
        """After stage 1: a new connector, towers and language model frozen."""
        steps, loop = self.recipe.align.warm_up_steps, self.recipe.align.loop
        module = copy.deepcopy(self.setup.module)
        torch.manual_seed(seed)
        config = module.model.config
        connector = build_projector(
            config.region_projector, config.region_width, config.text.hidden_size
        )
        module.model.region_projector = connector
        freeze_for(module, "align")
        kept = self.home / f"connector-{steps}-{seed}.pt"
        if kept.is_file():
            connector.load_state_dict(torch.load(kept, weights_only=True))
        else:
            warm_up_connector(
                module, self.pool, self.trained, steps=steps, precision=loop.precision
            )
            torch.save(connector.state_dict(), kept)
        return replace(self.setup, module=module)

    def folder(self, arm: str, seed: int) -> Path:
        """Where an arm's training is kept."""
        return self.home / f"{arm.replace(' ', '-')}-{self.rehearsal.loop.steps}-{seed}"

    def settings(self, seed: int) -> RehearsalSettings:
        """Stage 2's, with the randomness of a seed."""
        return replace(self.rehearsal, loop=replace(self.rehearsal.loop, seed=seed))

    def tuned(
        self,
        arm: str,
        seed: int,
        *,
        mixture: MixtureSettings | None = None,
        spell: Speller | None = None,
    ) -> GroundingSetup:
        """After stage 2 as well, from `aligned(seed)`: connector and language model learn."""
        setup = self.aligned(seed)
        freeze_for(setup.module, "instruct")
        rehearse(
            setup.module, setup.builder, self.pool, setup.names, setup.vocabulary, self.trained,
            self.settings(seed), self.folder(arm, seed), mixture=mixture, spell=spell,
        )  # fmt: skip
        return setup


def back_to_symbols(
    module: GroundingTraining, directory: Path, recipe: language.LanguageRecipe
) -> None:
    """Give the language model the symbolic stage's questions for some steps, from its own weights.

    Its eyes are symbols again, and by the experiments' recipe it forgets to say that something
    is not there.
    """

    def begin(pretraining: LanguagePretraining) -> None:
        trained = module.model.language_model
        assert trained is not None
        pretraining.language_model.load_state_dict(trained.state_dict())
        pretraining.slots.load_state_dict(module.slots.state_dict())

    language.run(directory, recipe, begin=begin)
    module.load_language(directory)
