"""Any detector of transformers as a class-agnostic proposer: images in, scored boxes out.

Closed-vocabulary detectors (DETR, RT-DETR, D-FINE, ...) count the best of their classes as
objectness; zero-shot ones (OWLv2, Grounding DINO, ...) are asked for one word. The family's own
image processor says how its outputs are read. Knows no thresholds and no frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForObjectDetection,
    AutoModelForZeroShotObjectDetection,
)

# The names at transformers' top level demand torchvision; the classes themselves do not.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import AutoProcessor

from agent.detections import FloatArray
from agent.errors import CheckpointMismatch
from agent.model.proposal_network import DEFAULT_PROMPT

_KEEP_ALL = -1.0
"""Thresholds are the proposer's business."""


class ObjectDetector(nn.Module):
    """A detector and its processor; `prompt` is None for one with a closed vocabulary."""

    def __init__(self, model: nn.Module, processor: Any, *, prompt: str | None) -> None:
        super().__init__()
        self.model = model
        self._processor = processor
        self._prompt = prompt

    @classmethod
    def from_pretrained(cls, directory: Path, *, prompt: str = DEFAULT_PROMPT) -> ObjectDetector:
        """The detector of a folder that `save_pretrained` wrote.

        Raises:
            CheckpointMismatch: the folder holds no detector that transformers knows, a processor
                file is missing, or weights are missing or of another shape.
        """
        try:
            config = AutoConfig.from_pretrained(directory, local_files_only=True)
            zero_shot = type(config) in AutoModelForZeroShotObjectDetection._model_mapping
            family = (
                AutoModelForZeroShotObjectDetection if zero_shot else AutoModelForObjectDetection
            )
            reader = AutoProcessor if zero_shot else AutoImageProcessor
            processor = reader.from_pretrained(directory, local_files_only=True)
            model, report = family.from_pretrained(
                directory, config=config, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise CheckpointMismatch(f"{directory} is no detector to load: {error}") from error
        for kind in ("missing_keys", "mismatched_keys"):
            if report[kind]:
                keys = ", ".join(map(str, sorted(report[kind])[:5]))
                raise CheckpointMismatch(
                    f"{directory} has {len(report[kind])} {kind.replace('_', ' ')}: {keys}"
                )
        return cls(model.eval(), processor, prompt=prompt if zero_shot else None)

    def forward(self, images: list[Any]) -> list[tuple[FloatArray, FloatArray]]:
        """Boxes and objectness of every image.

        Args:
            images: (height, width, 3) uint8 RGB arrays, of any sizes.

        Returns:
            For each image (n, 4) xyxy in its own pixels, not clipped, and (n,) in 0..1.
        """
        if self._prompt is None:
            inputs = self._processor(images=images, return_tensors="pt")
            reader = self._processor
        else:
            words = [[self._prompt]] * len(images)
            inputs = self._processor(images=images, text=words, return_tensors="pt")
            reader = self._processor.image_processor
        device = next(self.model.parameters()).device
        outputs = self.model(**inputs.to(device))
        found = reader.post_process_object_detection(
            outputs, threshold=_KEEP_ALL, target_sizes=[image.shape[:2] for image in images]
        )
        return [(_array(one["boxes"]), _array(one["scores"])) for one in found]


def _array(tensor: torch.Tensor) -> FloatArray:
    return np.asarray(tensor.float().cpu().numpy(), dtype=np.float32)
