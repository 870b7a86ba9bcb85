"""Every number of a training, by stage, as one file says it (`nano.yaml`, or one's own over it).

Knows the shape of the file; what a number does is said where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agent.errors import SettingsError
from agent.settings import from_mapping
from agent.training.grounding import AlignRecipe, InstructRecipe
from agent.training.language import LanguageRecipe
from agent.training.proposals import ProposalsRecipe
from agent.training.refinement import RefineRecipe
from agent.training.region_features import RegionsRecipe
from agent.training.reinforcement import ReinforcementSettings
from agent.training.vision import VisionRecipe

NANO_RECIPE = Path(__file__).parent / "nano.yaml"


@dataclass(frozen=True)
class Recipe:
    """All stages."""

    proposals: ProposalsRecipe
    language: LanguageRecipe
    vision: VisionRecipe
    regions: RegionsRecipe
    align: AlignRecipe
    instruct: InstructRecipe
    refine: RefineRecipe
    reinforce: ReinforcementSettings


def load_recipe(path: Path | None = None) -> Recipe:
    """The embedded model's recipe, with what the file at `path` says in place of its values.

    Raises:
        SettingsError: the file cannot be read, or has an unknown key or an impossible value.
    """
    values = _read(NANO_RECIPE)
    if path is not None:
        values = _overlaid(values, _read(path))
    return from_mapping(Recipe, values, str(path or NANO_RECIPE))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read as YAML ({error})") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must be a mapping of stages")
    return values


def _overlaid(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged, values replaced."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            merged[key] = _overlaid(below[key], value)
        else:
            merged[key] = value
    return merged
