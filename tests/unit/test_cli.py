"""Commands on a directory in the published layout, as a user types them."""

from __future__ import annotations

import importlib.metadata
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from agent.model.checkpoint import save_model
from agent.model.vlm_fo1 import VLMFO1
from deployments.cli import build_app, main
from tests.unit.tiny_model import tiny_config, write_tiny_model

TOKENIZER = Path(__file__).parents[1] / "golden" / "tokenizer"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """As downloaded: slow tokenizer files, Qwen's vocabulary; the proposal network beside it."""
    directory = write_tiny_model(tmp_path_factory.mktemp("published") / "model")
    (directory / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, directory / name)
    torch.manual_seed(1)
    config = tiny_config(151_936)
    save_model(VLMFO1(config), directory, dtype=torch.bfloat16)
    return directory


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (90, 70), (200, 30, 30)).save(path)
    return path


def run(*arguments):
    return CliRunner().invoke(build_app(), [str(a) for a in arguments])


def test_ground_on_a_published_directory(published, image, tmp_path):
    output = tmp_path / "out.png"
    result = run("ground", image, "dog", "--model", published, "--json", "--output", output)
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout.splitlines()[-1])
    assert line["answers"][0]["query"] == "dog"
    assert output.is_file()


def test_other_tasks(published, image, tmp_path):
    result = run("ground", image, "--task", "region_caption", "--region", "0", "--model", published,
                 "--json", "--output", tmp_path / "o.png")  # fmt: skip
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout.splitlines()[-1])["answers"][0]
    assert (answer["task"], answer["region"]) == ("region_caption", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "say what to look for"), (("--task", "region_ocr"), "say which with --region")],
)
def test_a_question_that_lacks_something(image, arguments, message):
    result = run("ground", image, *arguments)
    assert result.exit_code != 0
    assert message in str(result.exception)


def test_check_says_what_it_found(published):
    result = run("model", "check", published)
    assert result.exit_code == 0, result.output
    assert "can be loaded" in result.output


def test_check_lists_every_mismatch(published, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(published, broken)
    (broken / "merges.txt").unlink()
    raw = json.loads((broken / "config.json").read_text())
    raw["num_hidden_layers"] += 1
    (broken / "config.json").write_text(json.dumps(raw))
    result = run("model", "check", broken)
    assert result.exit_code == 1
    assert "merges.txt" in result.output
    assert "12 missing: model.layers.2" in result.output


def test_saving_writes_the_same_bits(published, tmp_path):
    from agent.model.checkpoint import load_model

    save_model(load_model(published, dtype=None), tmp_path / "again")
    first, second = (load_file(d / "model.safetensors") for d in (published, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("command", ["ground", "ask"])
def test_words_that_are_no_text_are_one_line(image, command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["groundstream", command, str(image), "dog\udcff"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    said = r"error: the query contains '\udcff', which is no character; write it in UTF-8"
    assert capsys.readouterr().err.splitlines() == [said]


def test_a_name_of_bytes_that_are_no_text_is_printed_as_an_escape(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8"))
    monkeypatch.setattr(sys, "argv", ["groundstream", "--version"])
    with pytest.raises(SystemExit):
        main()
    typer.echo("wrote a\udcff.png")
    assert printed.getvalue().endswith(b"wrote a\\udcff.png\n")


def test_the_version_is_told():
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.strip() == f"groundstream {importlib.metadata.version('groundstream')}"


@pytest.mark.parametrize(
    "command", [(), ("ground",), ("serve",), ("watch",), ("eval",), ("eval", "detection")]
)
def test_help_shows_no_type_beside_flags(command):
    shown = CliRunner().invoke(build_app(), [*command, "--help"], env={"COLUMNS": "120"}).output
    assert "--help" in shown
    assert "<bool>" not in shown
    if command and command != ("eval",):
        assert "<int>" in shown or "<float" in shown or "<int range>" in shown
