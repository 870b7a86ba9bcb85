"""The families of vision-language models that regions can be attached to, ready to ask.

One function per family: it joins the adapter with the family's image preparation and tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

# The name at transformers' top level demands torchvision; the class itself does not.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from agent.attached import AttachedGrounder, Prepare, with_control_tokens
from agent.errors import CheckpointMismatch
from agent.frame import RGBArray
from agent.model.attachment_checkpoint import load_attachment
from agent.model.configuration import VLMFO1Config
from agent.model.llava_adapter import LlavaAdapter
from agent.model.qwen_adapter import QwenAdapter
from agent.model.vlm_adapter import AttachedVLM, AttachmentConfig
from agent.model.vlm_fo1 import VLMFO1
from agent.processor import ImageGeometry, picture, primary_patches, working_image
from agent.tokenizer import PromptTokenizer


def qwen_grounder(model: VLMFO1, tokenizer: PromptTokenizer) -> AttachedGrounder:
    """A whole `VLMFO1` seen as a family with an attachment; all parts are the model's own."""
    assert model.auxiliary_encoder is not None
    config = model.config
    shape = AttachmentConfig(config.davit, config.region, config.region_projector)
    attached = AttachedVLM(QwenAdapter(model), shape)
    attached.auxiliary_encoder = model.auxiliary_encoder
    attached.region_encoder = model.region_encoder
    attached.region_projector = model.region_projector
    return AttachedGrounder(
        attached.eval(), tokenizer, _qwen_inputs(config), max_long_side=config.image.max_long_side
    )


def llava_grounder(
    directory: Path, attachment: Path | AttachmentConfig, *, dtype: torch.dtype = torch.float32
) -> AttachedGrounder:
    """LLaVA-OneVision from its folder, with a saved attachment or a fresh one.

    Raises:
        CheckpointMismatch: either folder is incomplete, or they do not fit together.
    """
    try:
        model, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
            directory, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointMismatch(f"{directory} is no LLaVA-OneVision: {error}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        keys = sorted(map(str, {*report["missing_keys"], *report["mismatched_keys"]}))
        raise CheckpointMismatch(f"{directory} lacks weights: {', '.join(keys[:5])}")
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointMismatch(f"{path} does not exist; copy the model's tokenizer files")
    tokenizer = with_control_tokens(Tokenizer.from_file(str(path)))
    adapter = LlavaAdapter(model)
    adapter.extend_vocabulary(tokenizer.vocab_size)
    if isinstance(attachment, Path):
        attached = load_attachment(adapter, attachment)
    else:
        attached = AttachedVLM(adapter, attachment)
    return AttachedGrounder(attached.eval(), tokenizer, _llava_inputs(processor, dtype))


def _qwen_inputs(config: VLMFO1Config) -> Prepare:
    def prepare(rgb: RGBArray) -> dict[str, Tensor]:
        height, width = rgb.shape[:2]
        geometry = ImageGeometry.of(width, height, config)
        return {
            "patches": primary_patches(working_image(picture(rgb, "cpu"), geometry), geometry),
            "grid_thw": torch.tensor([[1, *geometry.grid]]),
        }

    return prepare


def _llava_inputs(processor: Any, dtype: torch.dtype) -> Prepare:
    def prepare(rgb: RGBArray) -> dict[str, Tensor]:
        inputs = processor(images=[rgb], return_tensors="pt")
        return {
            "pixel_values": inputs["pixel_values"].to(dtype),
            "image_sizes": inputs["image_sizes"],
        }

    return prepare
