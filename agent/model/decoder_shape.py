"""The shape of a language model's decoder, as `config.json` states it.

Our own record of it: parts without a language model need not import transformers, which takes a
process seconds. Knows no weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from agent.errors import CheckpointMismatch

_COUNTS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip
_NUMBERS = ("rms_norm_eps", "rope_theta")


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

    def __post_init__(self) -> None:
        """
        Raises:
            CheckpointMismatch: no decoder has this shape.
        """
        for name in _COUNTS:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise CheckpointMismatch(
                    f"{name} is {value!r}, and must be a whole number from 1 on"
                )
        for name in _NUMBERS:
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise CheckpointMismatch(f"{name} is {value!r}, and must be a number above 0")
        for whole, part in (
            ("hidden_size", "num_attention_heads"),
            ("num_attention_heads", "num_key_value_heads"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise CheckpointMismatch(
                    f"{whole} {getattr(self, whole)} is no multiple of {part} {getattr(self, part)}"
                )
        if self.mrope_section is not None:
            self._check_section(self.mrope_section)

    def _check_section(self, section: tuple[int, ...]) -> None:
        shared = self.hidden_size // self.num_attention_heads // 2
        are_counts = all(type(count) is int and count > 0 for count in section)
        if not are_counts or len(section) != 3 or sum(section) != shared:
            raise CheckpointMismatch(
                f"mrope_section is {list(section)}, not three numbers that share out {shared}"
            )

    @classmethod
    def read(cls, raw: Mapping[str, Any], *, num_axes: int = 1) -> DecoderShape:
        """From the keys of `config.json`; `num_axes`: numbers that make up a position.

        Raises:
            KeyError: one is missing.
            CheckpointMismatch: no decoder has this shape.
        """
        section = None
        if num_axes > 1:
            rope = raw["rope_scaling"]
            section = rope["mrope_section"] if isinstance(rope, Mapping) else None
            if not isinstance(section, list):
                raise CheckpointMismatch("rope_scaling must hold a list, mrope_section")
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
