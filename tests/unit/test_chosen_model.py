"""What users name with --model and --proposals is brought here, or refused with what to type."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from agent.chosen_model import DEFAULT_NETWORK, ChosenModel, choose_model
from agent.errors import CheckpointMismatch, ModelNotFetched
from agent.model_directory import has_proposal_network
from deployments.cli import build_app
from tests.fake_hub import FakeHub, fake_hub, use_hub
from tests.unit.tiny_model import write_tiny_model

REPO = "omlab/VLM-FO1-3B-v01"
OMDET = Path(__file__).parents[1] / "golden" / "omdet"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the hub has it: without a proposal network."""
    folder = write_tiny_model(tmp_path_factory.mktemp("published") / "model")
    shutil.rmtree(folder / "proposal")
    return folder


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as running:
        use_hub(running, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr("time.sleep", lambda _: None)
        running.add_folder(REPO, published)
        running.add_folder(DEFAULT_NETWORK, OMDET)
        yield running


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (90, 70), (200, 30, 30)).save(path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(a) for a in arguments])


def test_the_published_name_is_enough(hub: FakeHub, image: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    result = run("ground", image, "dog", "--model", REPO, "--max-new-tokens", "3", "--json",
                 "--output", output)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["num_proposals"] >= 0
    assert f"fetching {REPO}" in result.stderr
    assert f"{REPO} brings no proposal network: boxes come from {DEFAULT_NETWORK}" in result.stderr
    assert f"loading {REPO} on cpu" in result.stderr
    # And again, with the network gone.
    num_asked, hub.is_dead = len(hub.requests), True
    again = run("ground", image, "dog", "--model", REPO, "--max-new-tokens", "3", "--json",
                "--output", output)  # fmt: skip
    assert again.exit_code == 0, again.output
    assert len(hub.requests) == num_asked


def test_names_are_pinned(hub: FakeHub) -> None:
    said: list[str] = []
    chosen = choose_model(REPO, report=said.append)
    network = f"{DEFAULT_NETWORK}@{hub.commit(DEFAULT_NETWORK)}"
    assert chosen == ChosenModel(f"{REPO}@{hub.commit(REPO)}", network)
    assert has_proposal_network(chosen.model, chosen.proposal_network)
    assert choose_model(f"{REPO}@{hub.commit(REPO)}", "none").proposal_network == "none"
    assert not has_proposal_network(chosen.model, "none")


def test_folders_become_absolute(
    hub: FakeHub, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(published.parent)
    chosen = choose_model("model", str(OMDET))
    assert chosen == ChosenModel(str(published), str(OMDET))
    assert not hub.requests


def test_a_model_with_a_network_of_its_own_keeps_it(hub: FakeHub, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "whole")
    assert choose_model(str(folder)).proposal_network is None
    assert choose_model("pocket") == ChosenModel("pocket", None)
    assert not hub.requests


def test_a_bare_file_is_upn(published: Path, tmp_path: Path) -> None:
    from agent.proposer import load_network

    file = tmp_path / "upn_large.pth"
    torch.save({"model": {}}, file)
    assert choose_model(str(published), str(file)).proposal_network == str(file)
    # It is opened as UPN's: all of its keys are missed.
    with pytest.raises(CheckpointMismatch, match="missing"):
        load_network(file, prompt="object")
    file.write_bytes(b"half a download")
    with pytest.raises(CheckpointMismatch, match="download it again"):
        load_network(file, prompt="object")


def test_no_network_without_the_hub(hub: FakeHub, published: Path) -> None:
    hub.is_dead = True
    with pytest.raises(ModelNotFetched, match="or serve clients that send boxes: --proposals none"):
        choose_model(str(published))
    assert choose_model(str(published), "none").proposal_network == "none"


def test_what_cannot_work(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "upn"
    folder.mkdir()
    (folder / "upn_large.pth").touch()
    for proposals, message in (
        ("./nowhere", "there is no such folder or file"),
        (str(folder), "give the file itself: --proposals .*upn_large.pth"),
    ):
        with pytest.raises(CheckpointMismatch, match=message):
            choose_model(str(published), proposals)
    with pytest.raises(CheckpointMismatch, match="leave the option out"):
        choose_model("pocket", "none")


@pytest.mark.parametrize(
    "arguments",
    [
        ("ground", "no.png", "dog", "--dtype", "int3"),
        ("serve", "--dtype", "int3"),
        ("eval", "odinw", "folder", "--dtype", "int3"),
    ],
)
def test_an_unknown_type_is_refused_before_anything_starts(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "none of auto, stored" in result.output.replace("\n", " ")


def test_every_command_with_a_model_has_the_same_options() -> None:
    from typer.main import get_command

    from deployments.cli.options import MODEL_OPTIONS

    apart = {"forgetting"}  # of the language model alone, always in float32
    groups, num_found = [get_command(build_app())], 0
    while groups:
        for name, command in groups.pop().commands.items():  # type: ignore[attr-defined]
            if hasattr(command, "commands"):
                groups.append(command)
                continue
            options = {p.name for p in command.params if p.param_type_name == "option"}
            if "model" in options and name not in apart:
                assert options >= MODEL_OPTIONS.keys(), name
                num_found += 1
    assert num_found > 20


def test_fetching_a_model_in_advance(hub: FakeHub) -> None:
    result = run("model", "fetch", REPO)
    assert result.exit_code == 0, result.output
    pinned = f"{REPO}@{hub.commit(REPO)}"
    assert result.stdout.splitlines()[-1] == f"groundstream serve --model {pinned}"
    hub.is_dead = True
    assert choose_model(pinned).proposal_network == (
        f"{DEFAULT_NETWORK}@{hub.commit(DEFAULT_NETWORK)}"
    )


def test_fetching_a_proposal_network(hub: FakeHub) -> None:
    result = run("model", "fetch", DEFAULT_NETWORK)
    assert result.exit_code == 0, result.output
    assert f"--proposals {DEFAULT_NETWORK}@" in result.stdout.splitlines()[-1]
    assert run("model", "check", REPO).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "answer", "message"),
    [
        ((), "", "model fetch upn --file upn_large.pth --accept-licence"),
        (("--file", "FILE", "--sha256", "0" * 64), "", "download it again"),
        (("--file", "FILE"), "n\n", "not used without its licence"),
        (("--file", "FILE", "--accept-licence"), "", "as published"),
        (("--file", "FILE"), "y\n", "as published"),
    ],
)
def test_upn_is_checked_and_agreed_to(
    tmp_path: Path, arguments: tuple[str, ...], answer: str, message: str
) -> None:
    file = tmp_path / "upn_large.pth"
    file.write_bytes(b"half a download")
    typed = [str(file) if word == "FILE" else word for word in arguments]
    result = CliRunner().invoke(build_app(), ["model", "fetch", "upn", *typed], input=answer)
    assert result.exit_code != 0
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_no_name_of_the_hub() -> None:
    assert "write OWNER/MODEL" in str(run("model", "fetch", "pocket").exception)


def test_the_doctor_says_what_a_model_needs(hub: FakeHub) -> None:
    said = run("doctor", "--model", REPO).output
    assert f"{REPO} is to be fetched: 0.0 GB" in said
    assert not hub.sent()
    run("model", "fetch", REPO)
    said = run("doctor", "--model", REPO, "--dtype", "float32").output
    assert f"ok    model      {REPO}, " in said
    assert "with --dtype float32 on cpu 0.0 GB" in said


def test_needs_are_those_of_the_chosen_type(published: Path) -> None:
    from agent.model_needs import model_needs

    plain, half = (model_needs(published, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert plain.num_weights == half.num_weights == plain.num_language + plain.num_vision
    assert plain.weight_bytes == 4 * plain.num_weights == 2 * half.weight_bytes
    assert model_needs(published, dtype="stored").weight_bytes == plain.stored_bytes
    assert half.peak_bytes > half.weight_bytes
