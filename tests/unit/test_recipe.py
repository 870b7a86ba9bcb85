"""The recipe of a training: every number in one file, nothing unknown in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.errors import SettingsError
from agent.training.recipe import NANO_RECIPE, load_recipe


def keys(values: Any, above: str = "") -> set[str]:
    """Dotted names of everything in nested mappings; rate shares are free."""
    if not isinstance(values, dict) or above.endswith("rate_shares"):
        return {above}
    return set().union(*(keys(value, f"{above}.{key}") for key, value in values.items()))


def test_the_file_says_every_number() -> None:
    assert keys(yaml.safe_load(NANO_RECIPE.read_text())) == keys(dataclasses.asdict(load_recipe()))


def test_a_file_of_ones_own_needs_only_what_differs(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "align: {mixture: {absent: 0.0}, pictures: {sizes: [[56, 84]]}, data: [{format: coco, "
        "annotations: a.json}]}"
    )
    shipped, changed = load_recipe(), load_recipe(mine)
    assert changed.align.mixture.absent == 0.0
    assert changed.align.pictures.sizes == ((56, 84),)
    assert changed.align.data[0].annotations == "a.json"
    assert changed.instruct == shipped.instruct
    restored = dataclasses.replace(
        changed.align, mixture=shipped.align.mixture, pictures=shipped.align.pictures, data=()
    )
    assert restored == shipped.align


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("align: {loop: {stepz: 3}}", "did you mean 'steps'"),
        ("alignment: {}", "did you mean 'align'"),
        ("vision: {loop: {steps: many}}", r"vision\.loop\.steps must be int"),
        ("vision: {pictures: {sizes: [[224]]}}", "must have 2 values"),
        ("vision: {pictures: {sizes: [[224, 225]]}}", "multiples of 28"),
        ("proposals: {pictures: {sizes: [[28, 28]]}}", "multiples of 32"),
        ("language: {loop: {precision: float8}}", "bfloat16 or float32"),
        ("align: {data: [{format: voc, annotations: a}]}", "data format 'voc'"),
        ("- a list", "mapping of stages"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_what_is_unknown_or_impossible_is_refused(tmp_path: Path, text: str, said: str) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    with pytest.raises(SettingsError, match=said):
        load_recipe(mine)
