"""What a frame costs once: boxes, image tokens and one vector per box from each encoder.

These arrays are what travels between stages and what the region cache holds; feature maps never
leave an encoder. NumPy only, so the ingress can handle them without loading torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray, IntArray, Proposals
from agent.frame import Frame
from agent.prompts import Task
from agent.urgency import CurrentLimits

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""NumPy has no bfloat16; its bits travel under this type, with which nobody can calculate."""

Array = NDArray[Any]
"""float32, float16 or `BFLOAT16`: what the model computes in; see `widened`."""


def widened(array: Array) -> FloatArray:
    """The same numbers as float32."""
    if array.dtype != BFLOAT16:
        return np.asarray(array, dtype=np.float32)
    bits = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32)


@dataclass(frozen=True)
class PrimaryFeatures:
    """What the primary vision encoder (the VLM's own ViT, or a classifier) says about a frame."""

    image_tokens: Array
    """(num_image_tokens, vision_width) before the image projector, raster order."""
    grid: tuple[int, int]
    """(rows, columns) of the encoder's cells; image tokens are as many, or a quarter of them where
    2x2 are merged, as Qwen's ViT does."""
    regions: Array
    """(num_boxes, primary_region_width): pooled features, or class probabilities."""
    seen_px: int = 0
    """Longer side of the picture that the encoder saw; 0: its cells are patches of 14 pixels."""


@dataclass(frozen=True)
class AuxiliaryFeatures:
    """What a second look says about the boxes: the auxiliary vision encoder (DaViT, high
    resolution), or the proposal network with the classes it knows."""

    regions: Array
    """(num_boxes, auxiliary_region_width) pooled features of all four levels, or evidence."""


@dataclass(frozen=True)
class FrameFeatures:
    """Everything the language stage needs to answer any question about one frame."""

    width: int
    height: int
    """Size of the frame in its own pixels; the boxes refer to it."""
    proposals: Proposals
    image_tokens: Array
    grid: tuple[int, int]
    primary_regions: Array
    auxiliary_regions: Array
    seen_px: int = 0
    """See `PrimaryFeatures`."""
    key: str = ""
    """Identity of frame, model, preprocessing and boxes; questions share prefixes by it."""
    image_key: str = ""
    """Set on one page of many boxes: what all pages of the frame share."""

    def __post_init__(self) -> None:
        counts = {len(self.proposals), len(self.primary_regions), len(self.auxiliary_regions)}
        if len(counts) != 1:
            raise ValueError(f"boxes and region features differ in number: {sorted(counts)}")

    def select(self, indices: IntArray) -> FrameFeatures:
        """The same frame with only these boxes; itself if they are all, in order."""
        if len(indices) == len(self.proposals) and (np.diff(indices) == 1).all():
            return self
        named = hashlib.blake2b(indices.astype("<i8").tobytes(), digest_size=8).hexdigest()
        return replace(
            self,
            proposals=self.proposals.select(indices),
            primary_regions=self.primary_regions[indices],
            auxiliary_regions=self.auxiliary_regions[indices],
            key=f"{self.key}/{named}" if self.key else "",
            image_key=self.key,
        )


@dataclass(frozen=True)
class Generation:
    """What the language model wrote, token by token."""

    pieces: tuple[str, ...]
    """Text of each generated token, special tokens kept, end token left out."""
    probabilities: tuple[float, ...]
    """Probability of each generated token, aligned with `pieces`."""
    truncated: bool
    """True when the token budget ended the answer, not the model."""
    num_prompt_tokens: int
    num_prefix_tokens_reused: int
    """Prompt tokens whose keys and values were already there from an earlier question."""
    num_passes: int
    """Forward passes of the language model, prefill included."""
    num_drafted_tokens: int = 0
    """Tokens that a draft had right and that cost no pass of their own."""

    @classmethod
    def told(cls, text: str) -> Generation:
        """An answer that no language model had to write."""
        return cls(
            pieces=(text,), probabilities=(1.0,), truncated=False,
            num_prompt_tokens=0, num_prefix_tokens_reused=0, num_passes=0,
        )  # fmt: skip

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass
class StageTimings:
    """Wall time of each stage of one answer as its caller saw it, in seconds."""

    cache_s: float = 0.0
    propose_s: float = 0.0
    primary_s: float = 0.0
    auxiliary_s: float = 0.0
    language_s: float = 0.0
    total_s: float = 0.0


class Stages(Protocol):
    """The stages of the pipeline; in one process or behind deployment handles.

    `propose` returns at once with a pending result that may be awaited any number of times and
    that the encoders accept as it is: they start on their own maps and wait for the boxes inside.
    """

    @property
    def has_auxiliary_encoder(self) -> bool:
        """Whether one describes the boxes; else the proposal network does, in its own time."""
        ...

    def within(self, limits: CurrentLimits) -> Stages:
        """The same stages for one call's work, refused at once where it would come too late."""
        ...

    def propose(self, frame: Frame) -> Awaitable[Proposals]: ...

    def resolved(self, proposals: Proposals) -> Awaitable[Proposals]:
        """Boxes that are known already (sent by the client), in the form `propose` returns."""
        ...

    async def encode_primary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> PrimaryFeatures: ...

    async def encode_auxiliary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> AuxiliaryFeatures: ...

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """What the language model writes; without features it is a conversation in words."""
        ...

    def write_answer(self, features: FrameFeatures, task: Task) -> AsyncIterator[str | Generation]:
        """The same answer as it is written: pieces of text, then the whole."""
        ...
