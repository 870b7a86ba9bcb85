"""Composed scenes as evaluation sets: drawings of everyday things in two styles, and of others.

Each set is a COCO folder in a cache, written once for what it is made of. Knows no benchmark and no
model.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from agent.evaluation.coco_folder import CocoFolder, load_coco
from agent.training.artwork import (
    TEST_FAMILIES,
    TRAINING_FAMILIES,
    everyday_concepts,
    load_concepts,
)
from agent.training.scenes import SCENES_VERSION, SceneSettings, load_composer, write_coco

_SPLIT = "val"


@dataclass(frozen=True)
class ComposedSet:
    """What the scenes of a set are made of."""

    name: str
    settings: SceneSettings

    def folder(self, cache: Path, num: int) -> Path:
        """Where the first `num` scenes are kept; another name for any other settings."""
        made_of = f"{SCENES_VERSION} {_SPLIT} {self.settings!r}"
        digest = hashlib.blake2b(made_of.encode(), digest_size=5).hexdigest()
        return cache / f"{self.name}-{num}-{digest}"

    def load(self, cache: Path, artwork: Path, num: int) -> CocoFolder:
        """The first `num` scenes of the validation split, composed unless they are in the cache."""
        folder = self.folder(cache, num)
        if not folder.is_dir():
            composer = load_composer(artwork, self.settings)
            scenes = (composer.compose_split(_SPLIT, index) for index in range(num))
            # Renamed when whole, so that an interrupted run is not taken for a set.
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            write_coco(partial, scenes, load_concepts(), chosen=self.settings.concepts)
            partial.rename(folder)
        return load_coco(folder, folder / "annotations.json")


def evaluation_sets() -> tuple[ComposedSet, ...]:
    """Drawings of things that photographs are named by, in two styles, and drawings of others."""
    everyday = everyday_concepts()
    other = tuple(sorted(set(range(len(load_concepts()))) - set(everyday)))
    drawn = SceneSettings(families=TRAINING_FAMILIES, concepts=everyday)
    return (
        ComposedSet("drawn", drawn),
        ComposedSet("twemoji", replace(drawn, families=TEST_FAMILIES)),
        ComposedSet("other", replace(drawn, concepts=other)),
    )
