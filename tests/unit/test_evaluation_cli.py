"""`groundstream eval`: real commands on a tiny model, and how figures are shown."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from agent.evaluation.report import print_columns, print_figures
from agent.evaluation.tally import Estimate
from deployments.cli import build_app
from groundstream.errors import SourceError
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
                 "--model", model, "--max-new-tokens", 16, "--json")  # fmt: skip
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


@pytest.fixture
def photographs(tmp_path):
    """A COCO folder of one picture with a dog, and what is surely absent."""
    Image.new("RGB", (90, 70), (200, 30, 30)).save(tmp_path / "7.jpg")
    annotations = {
        "images": [{"id": 7, "file_name": "7.jpg", "width": 90, "height": 70, "absent": ["cat"]}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 10, 40, 40],
                         "also": ["animal"]}],
        "categories": [{"id": 1, "name": "dog"}],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(annotations))
    return tmp_path


@pytest.mark.parametrize("command", ["detection", "words"])
def test_photographs_from_the_command_line(model, photographs, command):
    arguments = ("eval", command, "--images", photographs, "--annotations",
                 photographs / "instances.json", "--model", model,
                 "--max-new-tokens", 16)  # fmt: skip
    if command == "detection":
        arguments += ("--protocol", "own")
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    if command == "detection":
        assert (figures["images"], figures["present_labels"], figures["absent_labels"]) == (1, 1, 1)
        assert "region_top1" in figures["intervals"]
    else:
        # Four spellings and "animal"; of the cat as many.
        assert (figures["asked_present"], figures["asked_absent"]) == (5, 5)
        assert figures["labels_at_once"]["value"] == 2
    assert run(*arguments, env={"COLUMNS": "120"}).exit_code == 0


@pytest.mark.parametrize("command", ["detection", "words"])
def test_inputs_are_checked_before_the_model(photographs, command):
    def error(images, annotations):
        result = run("eval", command, "--images", images, "--annotations", annotations,
                     "--model", photographs / "no model")  # fmt: skip
        assert isinstance(result.exception, SourceError)
        return str(result.exception)

    labels = photographs / "instances.json"
    assert "is not a folder" in error(photographs / "none", labels)
    assert "cannot be read" in error(photographs, photographs / "none.json")
    (photographs / "7.jpg").write_bytes(b"no picture")
    assert "7.jpg" in error(photographs, labels)
    (photographs / "7.jpg").unlink()
    assert "does not exist" in error(photographs, labels)
    labels.write_text("{")
    assert "not a COCO annotation file" in error(photographs, labels)
