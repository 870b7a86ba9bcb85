"""Two workers through Ray Train learn together: different scenes, equal weights."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agent.training.pointing import PointingRecipe, PointingRun
from agent.training.workers import Workers
from deployments.cli.ray_train import launch

pytest.importorskip("ray.train")


def learn(directory: Path) -> None:
    """Two steps of the embedded model's language side, on one small scene a step and worker."""
    torch.set_num_threads(1)
    recipe = PointingRecipe(
        steps=2, align_steps=1, pointing_steps=1, scenes_per_step=1, labels_per_scene=(2, 2),
        most_regions=(3, 3), text_tokens=24,
    )  # fmt: skip
    head = np.random.default_rng(0).normal(size=(1000, 1280)).astype(np.float32)
    own = directory / f"worker {Workers.current().rank}"
    # Measuring takes minutes.
    with patch("agent.training.pointing.evaluate", return_value={}):
        texts = [["a text that is not forgotten " * 20]]
        PointingRun(recipe, head, texts, own).train(minutes=60)


@pytest.mark.slow
@pytest.mark.skipif("TRAINING" not in os.environ, reason="`make test-long` sets TRAINING")
def test_two_workers_step_together(tmp_path: Path) -> None:
    learn(tmp_path / "alone")
    launch(partial(learn, tmp_path / "both"), "pointing", tmp_path, 2)
    alone, both = (
        load_file(tmp_path / run / "worker 0" / "language.safetensors") for run in ("alone", "both")
    )
    assert alone.keys() == both.keys()
    assert any(not torch.equal(value, both[name]) for name, value in alone.items())
    steps = [
        json.loads(line) for line in (tmp_path / "both/worker 0/log.jsonl").read_text().splitlines()
    ]
    assert steps[-1]["step"] == 2
    assert not (tmp_path / "both" / "worker 1" / "language.safetensors").exists()
