"""`groundstream eval` of experiments: what the options change, and what is said without a start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.errors import SourceError
from agent.evaluation import ablations, experiment_start, output_study
from agent.evaluation.composed_sets import ComposedSet
from agent.evaluation.seeds import Spread
from agent.evaluation.tally import Estimate
from agent.training.nano import NanoTraining
from deployments.cli import build_app


def run(*arguments: object):
    return CliRunner().invoke(build_app(), ["eval", *(str(a) for a in arguments)])


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[NanoTraining]:
    """The trainings that experiments started from; nothing is loaded or composed."""
    seen: list[NanoTraining] = []

    def load(training: NanoTraining) -> NanoTraining:
        seen.append(training)
        return training

    monkeypatch.setattr(experiment_start.ExperimentStart, "load", load)
    monkeypatch.setattr(ComposedSet, "load", lambda self, cache, artwork, num: num)
    return seen


def test_options_reach_the_recipe(
    started: list[NanoTraining], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def stages(start: NanoTraining, data: int, *, num_seeds: int) -> ablations.Rows:
        assert data == 7
        return {"after stage 1": {"region_top1": Spread(0.25, 0.01 * num_seeds)}}

    monkeypatch.setattr(ablations, "compare_stages", stages)
    result = run("integration", "--base", "nano", "--directory", tmp_path, "--steps", 5,
                 "--pool", 9, "--seeds", 4, "--num", 7, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    (training,) = started
    recipe = training.recipe
    assert (training.base, training.directory) == ("nano", tmp_path)
    assert (recipe.instruct.rehearsal.loop.steps, recipe.regions.batches) == (5, 9)
    row = json.loads(result.stdout)["after stage 1"]
    assert row["region_top1"] == {"mean": 0.25, "deviation": 0.04}
    assert row["f1"] is None


@pytest.mark.parametrize(
    ("options", "module", "function", "shown"),
    [
        ((), ablations, "compare_mixtures", "false_positives | recall"),
        (("--outputs",), output_study, "compare_outputs", "language_ms | primary_ms"),
    ],
)
def test_both_experiments_of_mixtures_print_their_columns(
    started: list[NanoTraining],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    module: object,
    function: str,
    shown: str,
) -> None:
    async def compare(start: NanoTraining, data: int, *, num_seeds: int) -> ablations.Rows:
        return {"an arm": {"recall": Estimate(0.5, 0.25, 0.75)}}

    monkeypatch.setattr(module, function, compare)
    result = run("mixtures", *options, "--markdown")
    assert result.exit_code == 0, result.output
    head, _, row = result.stdout.splitlines()
    assert shown in head
    assert "0.500 (0.25 to 0.75)" in row


def test_without_a_training_the_base_is_named(tmp_path: Path) -> None:
    for command in ("encoders", "integration", "mixtures"):
        result = run(command, "--directory", tmp_path / "none", "--artwork", tmp_path)
        assert isinstance(result.exception, SourceError), command
        assert "--base nano" in str(result.exception)
