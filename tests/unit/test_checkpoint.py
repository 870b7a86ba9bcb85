"""Loading and saving: strict, by keys, the same bits back."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.errors import CheckpointMismatch
from agent.model.checkpoint import load_model, our_name, published_name, save_model
from agent.model.configuration import VLMFO1Config
from agent.model.vlm_fo1 import VLMFO1, Part
from agent.model_directory import find_model
from tests.unit.tiny_model import tiny_config, write_tiny_model


@pytest.fixture
def directory(tmp_path):
    return write_tiny_model(tmp_path / "model")


def edit(directory, change):
    path = directory / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def test_round_trip_is_bit_identical(directory, tmp_path):
    save_model(load_model(directory), tmp_path / "again")
    first, second = (load_file(d / "model.safetensors") for d in (directory, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert VLMFO1Config.from_file(tmp_path / "again" / "config.json").to_dict() == (
        VLMFO1Config.from_file(directory / "config.json").to_dict()
    )


def test_every_name_maps_there_and_back():
    for name in VLMFO1(tiny_config(300)).state_dict():
        assert our_name(published_name(name)) == name


def test_parts_load_alone(directory):
    model = load_model(directory, parts=frozenset({Part.AUXILIARY}))
    assert model.auxiliary_encoder is not None
    assert model.primary_encoder is None
    assert model.language_model is None


def test_sharded(directory):
    state = load_file(directory / "model.safetensors")
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: state[key] for key in keys}, directory / file)
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    load_model(directory)
    (directory / "b.safetensors").unlink()
    with pytest.raises(CheckpointMismatch, match=r"b\.safetensors"):
        load_model(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.norm.weight"), r"1 missing: model\.norm\.weight"),
        (lambda s: s.update({"model.extra.weight": torch.zeros(1)}), "1 unexpected"),
        (lambda s: s.update({"nonsense": torch.zeros(1)}), "not part of a VLM-FO1"),
        (lambda s: s.update({"model.norm.weight": torch.zeros(3)}), "of another shape"),
    ],
    ids=["missing", "unexpected", "foreign", "shape"],
)
def test_strict(directory, change, message):
    edit(directory, change)
    with pytest.raises(CheckpointMismatch, match=message):
        load_model(directory)


def test_truncated_file(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointMismatch, match="cannot be read"):
        load_model(directory)


def test_configuration_without_a_key(directory):
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    del raw["mm_region_feature_combination"]
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointMismatch, match="mm_region_feature_combination"):
        load_model(directory)


def test_unknown_model():
    with pytest.raises(CheckpointMismatch, match="does not exist"):
        find_model("no/such/folder")
