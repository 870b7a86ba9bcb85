"""From frames to proposals: pixels for the proposal network, scores, suppression, frame pixels.

Settings of the post-processing travel with the model's configuration. Knows no encoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from agent.detections import FloatArray, Proposals, clip_boxes, non_maximum_suppression
from agent.frame import Frame
from agent.model.configuration import ProposalConfig, VLMFO1Config
from agent.model.proposal_network import ProposalNetwork, load_proposal_network
from agent.model_directory import find_model
from agent.processor import IMAGENET_MEAN, IMAGENET_STD, normalise

_LEAST_SIDE_PX = 2.0


class Proposer:
    """The proposal network and what surrounds it."""

    def __init__(
        self, network: ProposalNetwork, config: ProposalConfig, *, device: str = "cpu"
    ) -> None:
        self._network = network.to(device)
        self._config = config
        self._device = device

    @classmethod
    def from_pretrained(
        cls, model: str, *, device: str = "cpu", num_threads: int | None = None
    ) -> Proposer:
        """The proposer of a model directory.

        Raises:
            CheckpointMismatch: files are missing or do not fit.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        path: Path = find_model(model).path
        config = VLMFO1Config.from_file(path / "config.json").proposal
        return cls(load_proposal_network(path / "proposal"), config, device=device)

    @torch.inference_mode()
    def propose(self, frames: list[Frame]) -> list[Proposals]:
        """Boxes of each frame in its own pixels, best first.

        Raises:
            InvalidFrame: an image body cannot be decoded.
        """
        if not frames:
            return []
        pixels = torch.stack([self._pixels(frame) for frame in frames]).to(self._device)
        boxes, objectness = self._network(pixels)
        return [
            self._select(frame, box.float().cpu().numpy(), score.float().cpu().numpy())
            for frame, box, score in zip(frames, boxes, objectness, strict=True)
        ]

    def _pixels(self, frame: Frame) -> Tensor:
        side = self._network.image_size
        image = Image.fromarray(frame.rgb()).resize((side, side), Image.Resampling.BILINEAR)
        return normalise(np.asarray(image), IMAGENET_MEAN, IMAGENET_STD)

    def _select(self, frame: Frame, centred: FloatArray, scores: FloatArray) -> Proposals:
        half = centred[:, 2:] / 2
        corners = np.concatenate([centred[:, :2] - half, centred[:, :2] + half], axis=1)
        size = np.array([frame.width, frame.height] * 2, dtype=np.float32)
        boxes = clip_boxes(corners * size, width=frame.width, height=frame.height)
        sides = boxes[:, 2:] - boxes[:, :2]
        sound = (scores >= self._config.score_threshold) & (sides >= _LEAST_SIDE_PX).all(axis=1)
        boxes, scores = boxes[sound], scores[sound]
        kept = non_maximum_suppression(boxes, scores, iou=self._config.nms_iou)
        return Proposals(boxes[kept], scores[kept]).top(self._config.max_boxes)
