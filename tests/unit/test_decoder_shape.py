"""The shape of a decoder: what it reads it writes, and what no decoder has is refused."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from agent.errors import CheckpointMismatch
from agent.model.decoder_shape import DecoderShape
from agent.model.language_model import DECODERS, decoder_config
from agent.model.smollm2 import smollm2_shape
from tests.unit.tiny_model import tiny_config

SHAPES = {
    "llama": smollm2_shape(),
    "qwen2": smollm2_shape(num_new_tokens=3),
    "qwen2_5_vl_text": tiny_config(300).text,
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_it_is_the_same_written_and_as_transformers_has_it(decoder: str) -> None:
    shape = SHAPES[decoder]
    num_axes = 3 if shape.mrope_section else 1
    assert DecoderShape.read(shape.write(), num_axes=num_axes) == shape
    assert DecoderShape.of(decoder_config(decoder, shape)) == shape


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden_size": "abc"}, "hidden_size is 'abc'"),
        ({"hidden_size": 577}, "hidden_size 577 is no multiple of num_attention_heads 9"),
        ({"num_key_value_heads": 2}, "no multiple of num_key_value_heads 2"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"mrope_section": (16, 8, 9)}, "three numbers that share out 32"),
        ({"mrope_section": (16, 16)}, "three numbers that share out 32"),
        ({"mrope_section": ("16", 8, 8)}, "three numbers that share out 32"),
    ],
)
def test_what_no_decoder_has_is_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointMismatch, match=said):
        DecoderShape(**{**asdict(smollm2_shape()), **changed})


@pytest.mark.parametrize("rope", [None, 3, {"mrope_section": None}, {"mrope_section": 8}])
def test_positions_of_three_axes_need_their_shares(rope: object) -> None:
    raw = {**tiny_config(300).text.write(), "rope_scaling": rope}
    with pytest.raises(CheckpointMismatch, match="must hold a list"):
        DecoderShape.read(raw, num_axes=3)
