"""Loading and saving: strict, by keys, the same bits back."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.errors import CheckpointMismatch
from agent.inspection import inspect_model
from agent.model.checkpoint import (
    build_empty,
    compare,
    load_model,
    published_shapes,
    read_config,
    save_model,
    without_tied_head,
)
from agent.model.checkpoint_files import StoredTensor
from agent.model.checkpoint_names import our_name, published_name
from agent.model.configuration import RegionConfig, VLMFO1Config
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


def test_every_published_key_of_the_full_model_maps():
    folder = Path(__file__).parents[1] / "golden" / "full_3b"
    keys = json.loads(gzip.decompress((folder / "keys.json.gz").read_bytes()))
    assert len(keys) == 1261
    stored = {key: StoredTensor(tuple(shape), "BF16", folder) for key, shape in keys.items()}
    config = read_config(folder, stored)
    assert config.davit.widths == (256, 512, 1024, 2048)
    assert config.davit.depths == (1, 1, 9, 1)
    wanted = published_shapes(build_empty(config))
    assert not compare(wanted, without_tied_head(stored, config))
    assert len(wanted) == 1260, "all but the tied head"


@pytest.mark.parametrize("device", ["meta"])
def test_the_full_model_loads_on_the_meta_device(device):
    config = read_config(Path(__file__).parents[1] / "golden" / "full_3b", {})
    model = build_empty(config, device=device)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(4.15e9, rel=0.01)


def test_half_precision_keeps_region_norms_wide(directory, tmp_path):
    torch.manual_seed(0)
    normed = replace(tiny_config(300), region=RegionConfig(pyramid_width=8, layer_norm=True))
    save_model(VLMFO1(normed), tmp_path / "normed", dtype=torch.bfloat16)
    model = load_model(tmp_path / "normed", dtype=None)
    assert model.language_model.model.norm.weight.dtype == torch.bfloat16
    assert model.region_encoder.primary_norm.weight.dtype == torch.float32


def test_tied_heads_may_be_stored(directory):
    edit(directory, lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"].clone()}))
    assert load_model(directory).language_model.lm_head is None


def test_parts_load_alone(directory):
    model = load_model(directory, parts=frozenset({Part.AUXILIARY}))
    assert model.auxiliary_encoder is not None
    assert model.primary_encoder is None
    assert model.language_model is None


def test_connectors_load_without_the_decoder(directory):
    """As much as a stage needs whose engine keeps the decoder."""
    whole = load_model(directory, parts=frozenset({Part.LANGUAGE}))
    model = load_model(directory, parts=frozenset({Part.CONNECTORS}))
    assert model.language_model is None
    weights = whole.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert any(name.startswith("region_projector.") for name in model.state_dict())


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
        (lambda s: s.update({"nonsense": torch.zeros(1)}), "1 unexpected: nonsense"),
        (lambda s: s.update({"model.norm.weight": torch.zeros(3)}), "of another shape"),
        (
            lambda s: s.update({"model.norm.weight": torch.zeros(32, dtype=torch.int64)}),
            r"model\.norm\.weight is I64",
        ),
    ],
    ids=["missing", "unexpected", "foreign", "shape", "integers"],
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


def test_left_padding_is_ignored_with_a_warning(directory, caplog):
    path = directory / "config.json"
    path.write_text(path.read_text().replace('"right"', '"left"'))
    load_model(directory)
    assert "right padding" in caplog.text


@pytest.mark.parametrize(
    ("preprocessor", "limit"),
    [
        ({"max_pixels": 1000000}, 1000000),
        ({"size": {"longest_edge": 2000000}}, 2000000),
        ({}, 12845056),
    ],
)
def test_area_limits_come_with_the_checkpoint(directory, preprocessor, limit):
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    assert read_config(directory).image.max_pixels == limit


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "is not JSON"),
        ("config.json", "[]", "must hold a JSON object"),
        ("model.safetensors", "nonsense", "cannot be read"),
    ],
)
def test_damaged_files(directory, file, content, message):
    (directory / file).write_text(content)
    with pytest.raises(CheckpointMismatch, match=message):
        load_model(directory)


def test_inspection_says_everything_at_once(directory):
    edit(directory, lambda s: (s.pop("model.norm.weight"), s.update(more=torch.zeros(1))))
    (directory / "tokenizer.json").unlink()
    raw = json.loads((directory / "config.json").read_text())
    raw |= {"mm_apply_region_layer_norm": True, "tokenizer_padding_side": "left"}
    (directory / "config.json").write_text(json.dumps(raw))
    report = inspect_model(directory)
    said = "\n".join(report.problems)
    for part in ("vocab.json", "model.norm.weight", "more", "mm_apply_region_layer_norm"):
        assert part in said
    assert any("left padding" in warning for warning in report.warnings)
    assert report.switches["language model"].startswith("2 layers of 32")


def test_inspection_of_a_sound_directory(directory):
    report = inspect_model(directory)
    assert not report.problems
    assert "language model" in report.found


def test_unknown_model():
    with pytest.raises(CheckpointMismatch, match="does not exist"):
        find_model("no/such/folder")
