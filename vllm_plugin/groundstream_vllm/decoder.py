"""A language model of ours as vLLM knows it: its own decoder, and slots that are filled on demand.

What fills a slot is asked for where vLLM would run an encoder. It happens only when neither the
keys and values of those tokens nor the embeddings are in one of vLLM's caches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm import ModelRegistry
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModal
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
)

from agent.model.checkpoint import load_model
from agent.model.positions import SlotType, mrope_positions
from agent.model.vlm_fo1 import Part

ARCHITECTURE = "GroundstreamDecoder"
LOAD_FORMAT = "groundstream"
MODALITIES = {SlotType.IMAGE: "image", SlotType.REGION: "region"}
DECODERS = {
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
}
"""vLLM's decoder by the `model_type` of ours; M-RoPE is a matter of the rotary parameters."""


class Fillings:
    """What fills slots, by a number that travels with a request through vLLM."""

    def __init__(self) -> None:
        self.num_filled = 0
        self._numbers = itertools.count()
        self._fillings: dict[int, Callable[[], Tensor]] = {}

    def put(self, filling: Callable[[], Tensor]) -> int:
        """Its number, until it is dropped."""
        number = next(self._numbers)
        self._fillings[number] = filling
        return number

    def fill(self, number: int) -> Tensor:
        """(slots, hidden)."""
        self.num_filled += 1
        return self._fillings[number]()

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget some."""
        for number in numbers:
            self._fillings.pop(number, None)


FILLINGS = Fillings()
"""Of this process: vLLM makes the model itself, so that it cannot be handed over."""


class _Limits(BaseProcessingInfo):  # type: ignore[misc]
    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return dict.fromkeys(MODALITIES.values())

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        return dict.fromkeys(mm_counts, seq_len)


class _NoDummies(BaseDummyInputsBuilder):  # type: ignore[misc]
    """vLLM measures no encoder here: there is none."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return ""

    def get_dummy_mm_data(self, *_: object, **__: object) -> dict[str, Any]:
        return {}


class _NoProcessor(BaseMultiModalProcessor):  # type: ignore[misc]
    """Requests come ready-made; vLLM wants to know a processor all the same."""

    requires_tokenizer = False

    def _get_mm_fields_config(self, *_: object, **__: object) -> dict[str, Any]:
        return {}

    def _get_prompt_updates(self, *_: object, **__: object) -> list[Any]:
        return []


@MULTIMODAL_REGISTRY.register_processor(_NoProcessor, info=_Limits, dummy_inputs=_NoDummies)
class GroundstreamDecoder(nn.Module, SupportsMultiModal, SupportsMRoPE):  # type: ignore[misc]
    """One of vLLM's decoders behind slots."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.language_model: Any
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = init_vllm_registered_model(
                vllm_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=[DECODERS[vllm_config.model_config.hf_config.model_type]],
            )

    def embed_multimodal(self, filling: Tensor, **_: object) -> list[Tensor]:
        """What stands in the slots of some items, by the numbers of their fillings."""
        weight = self.language_model.model.embed_tokens.weight
        return [
            FILLINGS.fill(number).to(weight.device, weight.dtype) for number in filling.tolist()
        ]

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        """Our positions, and by how much what is written next lies off its place in the text."""
        slots, grid = torch.zeros(len(input_tokens), dtype=torch.long), None
        for feature in mm_features:
            if feature.modality == MODALITIES[SlotType.IMAGE]:
                where = feature.mm_position
                slots[where.offset : where.offset + where.length] = SlotType.IMAGE
                rows, columns = feature.data["grid"].data.tolist()
                grid = rows, columns
        positions, following = mrope_positions(slots, grid)
        return positions, following - len(input_tokens)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """Hidden states after the final norm."""
        hidden: Tensor = self.language_model.model(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """(..., vocabulary)."""
        logits: Tensor | None = self.language_model.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Names that were taken; ours are those of transformers, which vLLM reads."""
        taken = self.language_model.load_weights(weights)
        return {f"language_model.{name}" for name in taken}


class _Loader(BaseModelLoader):  # type: ignore[misc]
    """Weights of our model directories, whatever they stand on."""

    def download_model(self, model_config: ModelConfig) -> None:
        """They are here already."""

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Hand over the decoder's tensors one by one, each forgotten once it is taken."""
        directory = Path(self.load_config.model_loader_extra_config["directory"])
        loaded = load_model(directory, parts=frozenset({Part.LANGUAGE}), dtype=model_config.dtype)
        assert loaded.language_model is not None
        state = loaded.language_model.state_dict()
        del loaded
        assert isinstance(model, GroundstreamDecoder)
        model.load_weights((name, state.pop(name)) for name in list(state))


def register() -> None:
    """Make model and loader known to the vLLM of this process."""
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, GroundstreamDecoder)
        register_model_loader(LOAD_FORMAT)(_Loader)
