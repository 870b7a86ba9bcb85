"""Layers with int8 weights: close to what they stand for, smaller, and the same for any rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from agent.ergo import ErgoZoom
from agent.generation import LanguageStage
from agent.model import int8
from agent.model.checkpoint import load_model, weight_type
from agent.model.int8 import Int8Linear, int8_layers, quantise_layers, quantised
from agent.model.vlm_fo1 import Part
from agent.model_needs import model_needs
from groundstream.errors import SettingsError
from tests.unit.test_ergo import model as model
from tests.unit.test_ergo import tokenizer as tokenizer
from tests.unit.tiny_model import write_tiny_model


def test_weights_are_rounded_to_half_a_step_of_their_rows_largest() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 64) * torch.logspace(-4, 2, 40)[:, None]
    whole, scale = quantised(weight)
    assert whole.dtype == torch.int8
    error = (whole.float() * scale[:, None] - weight).abs()
    assert (error <= 0.5001 * scale[:, None]).all()
    assert (whole.abs().amax(dim=1) == 127).all()
    nothing, _ = quantised(torch.zeros(2, 4))
    assert not nothing.any()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, int8._FEW_ROWS, int8._FEW_ROWS + 1, 200])
def test_a_layer_computes_what_its_weights_say(bias: bool, dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(96, 64, bias=bias).to(dtype)
    layer = Int8Linear(linear)
    given = torch.randn(2, rows, 96).to(dtype)
    weight = layer.weight.float() * layer.scale[:, None]
    wanted = nn.functional.linear(given.float(), weight)
    if linear.bias is not None:
        wanted = wanted + linear.bias.float()
    found = layer(given)
    assert (found.dtype, found.shape) == (dtype, (2, rows, 64))
    assert torch.allclose(found.float(), wanted, atol=0.03 if dtype == torch.bfloat16 else 1e-5)


@pytest.fixture
def small_layers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models have no large ones."""
    monkeypatch.setattr(int8, "_LEAST_WEIGHTS", 1)


@pytest.mark.usefixtures("small_layers_count")
def test_a_folder_is_loaded_with_int8_layers_in_towers_and_decoder(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    plain, whole = (load_model(folder, dtype=dtype) for dtype in (torch.float32, torch.int8))
    names = int8_layers(whole)
    for part in ("language_model.model.layers.", "primary_encoder.", "auxiliary_encoder."):
        assert any(name.startswith(part) for name in names)
    assert not any("projector" in name or "embed_tokens" in name for name in names)
    assert not any(tensor.is_meta for tensor in whole.state_dict().values())
    name = next(name for name in names if name.endswith("q_proj"))
    layer, linear = whole.get_submodule(name), plain.get_submodule(name)
    assert isinstance(layer, Int8Linear)
    assert torch.equal(layer.weight, quantised(linear.weight)[0])
    needed = model_needs(folder, dtype="int8").weight_bytes
    held = sum(tensor.nbytes for tensor in whole.state_dict().values())
    # Connectors are counted with the towers, whose type is wider.
    assert needed == pytest.approx(held, rel=0.05)


@pytest.mark.usefixtures("small_layers_count")
def test_a_stock_qwen_is_made_int8_too(model, tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model.save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = ErgoZoom.from_pretrained(tmp_path, dtype="int8")
    assert len(int8_layers(loaded._model)) >= 2 * 7
    assert isinstance(loaded._model.lm_head, nn.Linear)


def test_the_embedded_models_decoder_takes_half_the_memory() -> None:
    def size(dtype: str) -> tuple[int, int]:
        stage = LanguageStage.from_pretrained("pocket", dtype=dtype)
        decoder = stage._language.model
        linear = [m for m in decoder.modules() if isinstance(m, nn.Linear | Int8Linear)]
        stage.close()
        whole = sum(t.nbytes for m in linear for t in [*m.parameters(), *m.buffers()])
        return len(linear), whole

    (num, plain), (num_whole, whole) = size("bfloat16"), size("int8")
    assert num == num_whole == 30 * 7
    assert whole / plain < 0.51


def test_int8_is_a_type_of_the_settings() -> None:
    assert weight_type("int8", "cpu", Part.PRIMARY) is torch.int8
    with pytest.raises(SettingsError, match=r"known: .*int8"):
        weight_type("int7", "cpu", Part.PRIMARY)


def test_layers_that_save_nothing_stay() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(256, 256))
    quantise_layers(module)
    assert int8_layers(module) == ["1"]
