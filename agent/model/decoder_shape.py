"""The shape of a language model's decoder, as `config.json` states it.

Our own record of it: parts without a language model need not import transformers, which takes a
process seconds. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class DecoderShape:
    """What every decoder is told, under the keys of `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    mrope_section: tuple[int, ...] | None = None
    """Rotary frequencies of time, rows and columns (M-RoPE); None: positions have one axis."""

    @classmethod
    def read(cls, raw: Mapping[str, Any], *, num_axes: int = 1) -> DecoderShape:
        """From the keys of `config.json`; `num_axes`: numbers that make up a position.

        Raises:
            KeyError: one is missing.
        """
        section = raw["rope_scaling"]["mrope_section"] if num_axes > 1 else None
        optional = {"bos_token_id": None, "eos_token_id": None}
        return cls._of({**optional, **raw}, section)

    @classmethod
    def of(cls, text: Any) -> DecoderShape:
        """Of transformers' configuration of a decoder."""
        rope = text.rope_parameters
        said = {**text.to_dict(), "rope_theta": rope["rope_theta"]}
        return cls._of(said, rope.get("mrope_section"))

    @classmethod
    def _of(cls, said: Mapping[str, Any], section: list[int] | None) -> DecoderShape:
        names = [field.name for field in fields(cls) if field.name != "mrope_section"]
        return cls(
            **{name: said[name] for name in names},
            mrope_section=None if section is None else tuple(section),
        )

    def write(self) -> dict[str, Any]:
        """The keys that `read` reads."""
        flat = asdict(self)
        section = flat.pop("mrope_section")
        if section is not None:
            # In both spellings of the kind, as published files have it.
            flat["rope_scaling"] = {
                "rope_type": "default", "type": "default", "mrope_section": list(section)
            }  # fmt: skip
        return flat
