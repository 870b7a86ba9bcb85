"""From frames to proposals: pixels for a proposal network, scores, suppression, frame pixels.

The network is OmDet-Turbo, UPN or any detector of transformers, which its own `config.json` says,
or NanoDet, a single file. Settings of the post-processing travel with the model. Where the network
knows classes, its boxes come with evidence for them. Knows no encoder.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from agent.batching import equal_rows
from agent.detections import (
    FloatArray,
    Proposals,
    centred_to_corners,
    published_proposals,
    select_proposals,
)
from agent.errors import CheckpointMismatch
from agent.features import AuxiliaryFeatures
from agent.frame import Frame
from agent.model.configuration import ProposalConfig, VLMFO1Config
from agent.model.nanodet import NanoDet
from agent.model.watched_layers import watch
from agent.model_directory import find_model, find_network
from agent.processor import IMAGENET_MEAN, IMAGENET_STD, normalise, picture
from groundstream.errors import InvalidBoxes

logger = logging.getLogger(__name__)

_LEAST_SIDE_PX = 2.0


class Proposer:
    """A proposal network and what surrounds it; without one, clients must send boxes."""

    def __init__(
        self,
        network: nn.Module | None,
        config: ProposalConfig,
        *,
        device: str = "cpu",
        as_published: bool = False,
    ) -> None:
        """
        Args:
            network: `NanoDet`, or one of `agent.model.published_networks`.
            config: which of its boxes are kept.
            device: where it is to run.
            as_published: select boxes as UPN's own wrapper does.
        """
        self.network = None if network is None else network.to(device)
        if network is not None:
            watch(network)
        self._config = config
        self._device = device
        self._as_published = as_published

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        device: str = "cpu",
        num_threads: int | None = None,
        network: str | None = None,
        max_boxes: int | None = None,
        score_threshold: float | None = None,
        as_published: bool = False,
    ) -> Proposer:
        """The proposer of a model directory.

        Args:
            model: name or folder of the model.
            network: use this proposal network, not the model's own: a folder, a file, a hub name
                or "none".
            max_boxes: most proposals of a frame, instead of the model's own limit.
            score_threshold: least objectness of a proposal, instead of the model's own.
            as_published: select boxes as UPN's own wrapper does.

        Raises:
            CheckpointMismatch: files are missing or do not fit.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        directory = find_model(model)
        path: Path = directory.path
        config = VLMFO1Config.from_file(path / "config.json").proposal
        if network is not None:
            config = replace(config, network=network)
        if max_boxes is not None:
            config = replace(config, max_boxes=max_boxes)
        if score_threshold is not None:
            config = replace(config, score_threshold=score_threshold)
        folder = find_network(path, config.network)
        if folder is None:
            logger.warning(
                "%s has no proposal network; every request must bring boxes", directory.name
            )
        loaded = None if folder is None else load_network(folder, prompt=config.prompt)
        return cls(loaded, config, device=device, as_published=as_published)

    @torch.inference_mode()
    def propose(self, frames: list[Frame]) -> list[Proposals]:
        """Boxes of each frame in its own pixels, best first.

        Raises:
            InvalidFrame: an image body cannot be decoded.
            InvalidBoxes: there is no proposal network, so the request should have brought boxes.
        """
        if not frames:
            return []
        if isinstance(self.network, NanoDet):
            return [self._classed(self.network, frame) for frame in frames]
        config = self._config
        if self._as_published:
            return [
                published_proposals(
                    boxes, scores, score_threshold=config.score_threshold,
                    nms_iou=config.nms_iou, max_boxes=config.max_boxes,
                )
                for boxes, scores in self._scored(frames)
            ]  # fmt: skip
        return [
            select_proposals(
                boxes,
                scores,
                width=frame.width,
                height=frame.height,
                score_threshold=self._config.score_threshold,
                nms_iou=self._config.nms_iou,
                max_boxes=self._config.max_boxes,
                least_side_px=_LEAST_SIDE_PX,
            )
            for frame, (boxes, scores) in zip(frames, self._scored(frames), strict=True)
        ]

    @torch.inference_mode()
    def describe(self, frame: Frame, boxes: FloatArray) -> FloatArray:
        """Evidence for boxes of any origin: (num_boxes, num_classes) in 0..1.

        Args:
            frame: the picture.
            boxes: (num_boxes, 4) xyxy pixels of the frame.

        Raises:
            InvalidFrame: the image body cannot be decoded.
            CheckpointMismatch: the network knows no classes.
        """
        if not isinstance(self.network, NanoDet):
            raise CheckpointMismatch(
                "the proposal network knows no classes, so it cannot describe boxes; the model's "
                "auxiliary features need one that does, such as NanoDet"
            )
        evidence = self.network.describe(frame.rgb(), torch.from_numpy(boxes).to(self._device))
        return np.asarray(evidence.cpu().numpy(), dtype=np.float32)

    def _classed(self, network: NanoDet, frame: Frame) -> Proposals:
        config = self._config
        found = network.propose(
            frame.rgb(),
            score_threshold=config.score_threshold,
            nms_iou=config.nms_iou,
            max_boxes=config.max_boxes,
        )
        return Proposals(
            found.xyxy.cpu().numpy(), found.objectness.cpu().numpy(), found.evidence.cpu().numpy()
        )

    def _scored(self, frames: list[Frame]) -> list[tuple[FloatArray, FloatArray]]:
        """Raw boxes in frame pixels and their objectness."""
        if self.network is None:
            raise InvalidBoxes(
                "this model has no proposal network: send boxes with the request, or start with "
                "--proposals (a hub name such as omlab/omdet-turbo-swin-tiny-hf, a folder, or "
                "UPN's .pth)"
            )
        size_of = getattr(self.network, "size_of", None)
        if size_of is None:  # It prepares pictures by itself.
            return self.network([frame.rgb() for frame in frames])
        # Frames that it sees at one size are one batch.
        sizes = [size_of(frame.width, frame.height) for frame in frames]
        found: dict[int, tuple[FloatArray, FloatArray]] = {}
        for rows in equal_rows(sizes):
            batch = self._run(self.network, [frames[row] for row in rows], sizes[rows[0]])
            found |= dict(zip(rows, batch, strict=True))
        return [found[row] for row in range(len(frames))]

    def _run(
        self, network: nn.Module, frames: list[Frame], size: tuple[int, int]
    ) -> list[tuple[FloatArray, FloatArray]]:
        """Raw boxes and objectness of frames seen at `size`, (width, height)."""
        pixels = torch.stack([self._pixels(frame, size) for frame in frames]).to(self._device)
        centred, objectness = network(pixels)
        return [
            (
                centred_to_corners(box.float().cpu().numpy(), width=f.width, height=f.height),
                score.float().cpu().numpy(),
            )
            for f, box, score in zip(frames, centred, objectness, strict=True)
        ]

    def _pixels(self, frame: Frame, size: tuple[int, int]) -> Tensor:
        image = picture(frame.rgb(), self._device).resize(size, Image.Resampling.BILINEAR)
        return normalise(image, IMAGENET_MEAN, IMAGENET_STD)


class ProposalEvidence:
    """The auxiliary features of a model whose proposal network knows classes: no encoder at all.

    Boxes that the network found bring their evidence with them; for those that others sent it is
    asked. Has the methods of an encoder stage.
    """

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer

    def start(self, frames: list[Frame]) -> list[Frame]:
        """Nothing has to be computed before there are boxes."""
        return frames

    def pool(self, frame: Frame, proposals: Proposals) -> AuxiliaryFeatures:
        """The evidence of every box.

        Raises:
            InvalidFrame: the image body cannot be decoded.
        """
        if proposals.evidence.shape[1]:
            return AuxiliaryFeatures(proposals.evidence)
        return AuxiliaryFeatures(self._proposer.describe(frame, proposals.xyxy))


def load_network(folder: Path, *, prompt: str) -> nn.Module:
    """The network of a folder, of the kind its `config.json` declares, or of a file.

    A `.pth` is UPN as it was published; any other file is NanoDet.

    Raises:
        CheckpointMismatch: files are missing or do not fit.
    """
    if folder.is_file() and folder.suffix != ".pth":
        return NanoDet.from_file(folder)
    # The others run on transformers, which takes a process seconds to import.
    from agent.model.published_networks import load_published

    return load_published(folder, prompt=prompt)
