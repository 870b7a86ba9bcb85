"""`groundstream train`: what each command hands on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import agent
from agent.model.checkpoint import read_config
from agent.training import pointing, wordnet
from agent.training.artwork import Atlas, build_atlas
from agent.training.reinforcement import ReinforcementSettings, load_settings
from deployments.cli import build_app, main
from groundstream.errors import AgentError, SettingsError, SourceError

POCKET = Path(agent.__file__).parent / "weights" / "pocket"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(build_app(), ["train", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_pointing_runs_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[object, ...], dict[str, object]]] = []
    monkeypatch.setattr(pointing, "run", lambda *a, **k: asked.append((a, k)))
    run("pointing", "--head", tmp_path / "head", "--directory", tmp_path, "--steps", 7)
    ((recipe, head, directory), options) = asked[0]
    assert recipe == pointing.PointingRecipe(steps=7)
    assert (head, directory) == (tmp_path / "head", tmp_path)
    assert options["threads"] == 1


def test_training_without_a_text_to_rehearse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--wordnet"):
        pointing.run(pointing.PointingRecipe(), tmp_path / "head", tmp_path)


def test_export_writes_a_folder_that_can_be_read(tmp_path: Path) -> None:
    made = {"connector.powers": torch.ones(3), "new_tokens.weight": torch.zeros(4, 2)}
    (tmp_path / "run").mkdir()
    save_file(made, tmp_path / "run" / "language.safetensors")
    run("export", "--directory", tmp_path / "run", "--output", tmp_path / "model")
    assert read_config(tmp_path / "model").tasks
    assert (tmp_path / "model" / "language.safetensors").is_file()
    bad = CliRunner().invoke(build_app(), ["train", "export", "--output", str(tmp_path)])
    assert bad.exit_code == 2


def test_the_vocabulary_is_written_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wordnet, "build", lambda *_: {"imagenet": [{"a": 1}], "coco": []})
    run("vocabulary", "--wordnet", "w", "--synsets", "s", "--output", tmp_path / "v.json")
    assert (
        tmp_path / "v.json"
    ).read_text() == '{\n"imagenet": [\n{"a": 1}\n],\n"coco": [\n\n]\n}\n'


def test_a_recipe_needs_only_what_differs(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("loop: {steps: 3}\nkl: 0.5")
    changed, usual = load_settings(mine), load_settings(None)
    assert usual == ReinforcementSettings()
    assert (changed.loop.steps, changed.kl) == (3, 0.5)
    assert changed.loop.learning_rate == usual.loop.learning_rate
    assert changed.drawing == usual.drawing


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loop: {stepz: 3}", "did you mean 'steps'"),
        ("loop: {steps: many}", r"loop\.steps should be a valid integer"),
        ("loop: {precision: float8}", "bfloat16 or float32"),
        ("- a list", "must be a mapping"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_what_is_unknown_or_impossible_is_refused(tmp_path: Path, text: str, said: str) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    with pytest.raises(SettingsError, match=said):
        load_settings(mine)


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("wordnet", "wrong", "none of WordNet 3.0's files"),
        ("wordnet", "missing", "No such file"),
        ("head", "wrong", "wrong cannot be read"),
        ("start", "missing", "language.safetensors cannot be read"),
        ("evidence", "wrong", "groundstream train evidence"),
        ("own_answers", "missing", "train own-answers"),
    ],
)
def test_a_training_that_is_given_the_wrong_file_says_so(
    tmp_path: Path, option: str, name: str, said: str
) -> None:
    (tmp_path / "wrong").write_text("not what it should be")
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "one.txt").write_text("a text that is long enough to be rehearsed " * 8)
    given = {"head": POCKET / "efficientnet_lite0.safetensors", option: tmp_path / name}
    with pytest.raises(AgentError, match=said):
        pointing.run(
            pointing.PointingRecipe(steps=0), output=tmp_path / "run", texts=[texts], **given
        )


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("train", "artwork", "--cache", "/proc/drawings"), "/proc/drawings"),
        (("eval", "high-resolution", "--num", "1", "--artwork", "none"), "train artwork"),
    ],
)
def test_what_a_caller_can_mend_is_one_line(monkeypatch, capsys, tmp_path, command, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["groundstream", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ")
    assert said in last


def test_drawings_without_npm_are_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="install npm"):
        build_atlas(tmp_path / "drawings")


def test_a_file_of_drawings_that_is_none_is_refused(tmp_path):
    (tmp_path / "noto.npy").write_bytes(b"half a downl")
    with pytest.raises(SourceError, match="train artwork"):
        Atlas.load(tmp_path)
