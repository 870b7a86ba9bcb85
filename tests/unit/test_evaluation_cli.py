"""`groundstream eval`: real commands on a tiny model, and how figures are shown."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from agent.errors import SourceError
from agent.evaluation.report import print_columns, print_figures
from agent.evaluation.tally import Estimate
from deployments.cli import build_app
from tests.unit.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def pope(tmp_path):
    Image.new("RGB", (90, 70), (200, 30, 30)).save(tmp_path / "7.jpg")
    rows = [{"question_id": i, "image": "7.jpg", "text": f"Is there a {thing} in the image?",
             "label": label}
            for i, (thing, label) in enumerate([("dog", "yes"), ("cat", "no")])]  # fmt: skip
    file = tmp_path / "coco_pope_random.json"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def run(*arguments, **options):
    return CliRunner().invoke(build_app(), [str(a) for a in arguments], **options)


def test_a_benchmark_from_the_command_line(model, pope):
    result = run("eval", "pope", "--questions", pope, "--images", pope.parent,
                 "--model", model, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["accuracy"]["count"] == 2
    # Random weights say neither yes nor no, which the published rule takes for yes.
    assert figures["accuracy"]["value"] == figures["precision"]["value"] == 0.5
    assert figures["strict_accuracy"]["value"] == 0.0


def test_a_file_of_another_benchmark_is_named(model, pope):
    result = run("eval", "mmbench", pope, "--model", model)
    assert isinstance(result.exception, SourceError)
    assert "'index'" in str(result.exception)


def test_every_benchmark_has_a_command():
    listed = run("eval", "--help", env={"COLUMNS": "120"}).stdout
    for name in ("detection", "odinw", "ovdeval", "refcoco", "countbench", "pixmo-count", "lvis",
                 "paco", "cocotext", "ferret-bench", "mmbench", "mmstar", "pope", "compose",
                 "suite", "proposals", "clutter", "tracking", "video", "words"):  # fmt: skip
        assert name in listed


def test_figures_as_markdown_and_json(capsys):
    rows = {"recall": {"seen": Estimate(0.5, 0.41, 0.62, 12.0), "novel": None}}
    print_columns("", rows, as_json=False, markdown=True)
    assert capsys.readouterr().out.splitlines() == [
        "|  | seen | novel |",
        "| --- | --- | --- |",
        "| recall | 0.500 (0.41 to 0.62) | - |",
    ]
    print_columns("", rows, as_json=True, markdown=False)
    assert json.loads(capsys.readouterr().out)["recall"]["seen"]["high"] == 0.62
    print_figures("", {"mean AP": 0.25, "recall": rows["recall"]["seen"]}, as_json=False)
    shown = capsys.readouterr().out
    assert "0.25" in shown
    assert "12" in shown
