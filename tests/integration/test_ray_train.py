"""Two workers through Ray Train learn what one worker learns from the same batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agent.training.annotations import DataSource
from agent.training.curves import read_log
from agent.training.loop import load_module_state
from agent.training.nano import NanoTraining, with_own_pictures
from agent.training.recipe import load_recipe
from deployments.training import launch
from tests.own_pictures import write_coco

pytest.importorskip("ray.train")


def training(directory: Path, annotations: Path, *, accumulate: int) -> NanoTraining:
    """Alignment of the embedded model to six pictures, in float32."""
    source = DataSource("coco", str(annotations))
    recipe = with_own_pictures(load_recipe(), "align", (source,), 3)
    align = replace(
        recipe.align,
        loop=replace(
            recipe.align.loop, accumulate=accumulate, precision="float32", log_every=1,
            warmup_steps=1, learning_rate=1e-3,
        ),
        pictures=replace(recipe.align.pictures, batch_size=2, sizes=((112, 84), (84, 112))),
    )  # fmt: skip
    return NanoTraining(
        directory / "no artwork", directory, replace(recipe, align=align), base="nano"
    )


@pytest.mark.slow
def test_two_workers_equal_one_with_the_same_global_batch(tmp_path: Path) -> None:
    annotations = write_coco(tmp_path / "mine")
    training(tmp_path / "one", annotations, accumulate=2).run("align")
    launch(training(tmp_path / "two", annotations, accumulate=1), "align", 2)
    alone, together = (read_log(tmp_path / run / "align") for run in ("one", "two"))
    assert [row["step"] for row in together] == [1, 2, 3]
    for name in ("loss", "lm", "pointing", "naming"):
        expected = [row[name] for row in alone]
        assert [row[name] for row in together] == pytest.approx(expected, abs=2e-4), name
    begun = load_module_state(tmp_path / "one" / "align")
    ended = load_module_state(tmp_path / "two" / "align")
    torch.testing.assert_close(ended, begun, atol=2e-4, rtol=1e-3)
