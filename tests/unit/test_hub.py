"""Models of the hub: fetched once, continued, pinned, found without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import hub as hub_module
from agent.errors import ModelNotFetched
from agent.hub import HubName, cached, fetch, local_or_fetched, name_of_snapshot
from agent.model_directory import display_name, find_model
from tests.fake_hub import FakeHub, fake_hub, use_hub

REPO = "omlab/VLM-FO1-3B-v01"
NAME = HubName(REPO)
FILES = {
    "config.json": b'{"model_type": "omchat_qwen2_5_vl"}',
    "merges.txt": b"#version\n",
    "README.md": b"never fetched",
    "model.safetensors": (2).to_bytes(8, "little") + b"{}" + bytes(range(256)) * 400,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as running:
        running.repositories[REPO] = dict(FILES)
        use_hub(running, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield running


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (REPO, HubName(REPO)),
        (f"{REPO}@v1.0", HubName(REPO, "v1.0")),
        ("pocket", None),
        ("./omlab/model", None),
        ("/omlab/model", None),
        ("a/b/c", None),
        ("../model", None),
    ],
)
def test_names(text: str, name: HubName | None) -> None:
    assert HubName.parse(text) == name


def test_a_folder_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "omlab" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert HubName.parse("omlab/model") is None


def test_cold_then_known(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    folder = fetch(NAME, report=said.append)
    assert folder.name == hub.commit(REPO)
    assert {file.name for file in folder.iterdir()} == FILES.keys() - {"README.md"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert hub.sent()[-1][0] == "model.safetensors"
    assert "3 of 3: model.safetensors" in " ".join(said)
    num_asked = len(hub.requests)
    no_network(monkeypatch)
    assert local_or_fetched(NAME) == folder
    assert local_or_fetched(HubName(REPO, folder.name)) == folder
    assert len(hub.requests) == num_asked


def test_the_commit_stays_until_it_is_fetched_again(hub: FakeHub) -> None:
    first = local_or_fetched(NAME)
    hub.repositories[REPO]["config.json"] = b'{"model_type": "newer"}'
    assert local_or_fetched(NAME) == first
    second = fetch(NAME)
    assert local_or_fetched(NAME) == second != first
    assert local_or_fetched(NAME.pinned(first)) == first
    # What both have in common came once.
    assert [name for name, _ in hub.sent()].count("model.safetensors") == 1


def test_it_goes_on_where_it_ended(hub: FakeHub) -> None:
    hub.breaks_after = 5000
    with pytest.raises(ModelNotFetched, match="goes on where it ended"):
        fetch(NAME)
    assert cached(NAME) is None
    hub.is_dead, hub.breaks_after = False, None
    said: list[str] = []
    folder = fetch(NAME, report=said.append)
    assert hub.sent()[-1] == ("model.safetensors", "bytes=5000-")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_dead_hub_says_what_to_do(hub: FakeHub) -> None:
    hub.is_dead = True
    with pytest.raises(ModelNotFetched, match=f"groundstream model fetch {REPO}") as raised:
        fetch(NAME)
    assert "\n" not in str(raised.value)


def test_offline_without_the_model(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch)
    with pytest.raises(ModelNotFetched, match="cannot be reached"):
        local_or_fetched(NAME)
    assert not hub.requests


@pytest.mark.parametrize("is_large", [True, False])
def test_a_wrong_size(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, is_large: bool) -> None:
    if not is_large:
        monkeypatch.setattr(hub_module, "_LARGE_BYTES", 10**9)
    hub.adds = 3
    with pytest.raises(ModelNotFetched, match="run the same command again"):
        fetch(NAME)
    assert cached(NAME) is None
    hub.adds = 0
    assert fetch(NAME)


def test_other_bytes_of_the_same_size(hub: FakeHub) -> None:
    hub.breaks_after = 5000
    with pytest.raises(ModelNotFetched):
        fetch(NAME)
    (part,) = hub_module._repository(REPO).glob("blobs/*.part")
    part.write_bytes(b"\1" * 5000)
    hub.is_dead, hub.breaks_after = False, None
    with pytest.raises(ModelNotFetched, match="SHA-256"):
        fetch(NAME)
    assert fetch(NAME)


def test_more_than_the_file_is_thrown_away(hub: FakeHub) -> None:
    hub.breaks_after = 5000
    with pytest.raises(ModelNotFetched):
        fetch(NAME)
    (part,) = hub_module._repository(REPO).glob("blobs/*.part")
    part.write_bytes(FILES["model.safetensors"] + b"\0")
    hub.is_dead, hub.breaks_after = False, None
    assert (fetch(NAME) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_no_room(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2000})())
    with pytest.raises(ModelNotFetched, match="set HF_HOME to a folder on a larger disk"):
        fetch(NAME)
    assert not hub.sent()


def test_a_disk_that_becomes_full(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", write)
    with pytest.raises(ModelNotFetched, match="the disk became full"):
        fetch(NAME)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (HubName("omlab/no-such"), "nor such a model on the hub"),
        (HubName(REPO, "v9"), "no revision 'v9'"),
    ],
)
def test_what_the_hub_does_not_have(hub: FakeHub, name: HubName, message: str) -> None:
    with pytest.raises(ModelNotFetched, match=message):
        fetch(name)


def test_weights_of_another_kind(hub: FakeHub) -> None:
    hub.repositories[REPO] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(ModelNotFetched, match=r"no \*\.safetensors"):
        fetch(NAME)


def test_shards_that_are_not_all_there_are_no_model(hub: FakeHub) -> None:
    folder = fetch(NAME)
    index = b'{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
    (folder / "model.safetensors.index.json").write_bytes(index)
    assert cached(NAME) is None


def test_users_see_the_hubs_names(hub: FakeHub) -> None:
    folder = fetch(NAME)
    assert name_of_snapshot(folder) == REPO
    pinned = str(NAME.pinned(folder))
    assert pinned == f"{REPO}@{folder.name}"
    for model in (REPO, pinned, str(folder)):
        assert display_name(model) == REPO
        assert find_model(model).name == REPO
        assert find_model(model).path == folder
    assert len({find_model(model).digest for model in (REPO, pinned, str(folder))}) == 1
