"""Where `groundstream ground` draws what it found: one picture, or a video, frame by frame."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from agent.detections import Proposals
from agent.parsing import Answer
from agent.pipeline import Grounding
from agent.prompts import TaskKind
from groundstream.errors import SettingsError, SourceError
from groundstream.locations import without_secrets
from groundstream.video.drawing import LabelledBox, draw_boxes
from groundstream.video.pictures import IMAGE_SUFFIXES
from groundstream.video.sources import (
    ImageFolder,
    SourceFrame,
    VideoFile,
    VideoSource,
)
from groundstream.video.writer import VIDEO_SUFFIXES, VideoWriter


def output_beside(source: str) -> Path:
    """Beside a file or folder that is there, else in the working directory."""
    path = Path(without_secrets(source))
    folder = path.parent if path.exists() else Path()
    is_picture = path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES
    return folder / f"{path.stem}_grounded{'.png' if is_picture else '.mp4'}"


def check_output(output: Path, source: str, *, is_one_picture: bool) -> None:
    """Refuse a place that could not be written, before anything is computed.

    Raises:
        SettingsError: a kind of file that is not written, or the source itself.
        SourceError: no such folder, or one that cannot be written to.
    """
    suffix = output.suffix.lower()
    if suffix not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        known = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise SettingsError(f"{output}: what kind of file is that? Known are {known}")
    if suffix in IMAGE_SUFFIXES and not is_one_picture:
        raise SettingsError(
            f"{output} holds one picture and there may be several; give a video, or --limit 1"
        )
    if not output.parent.is_dir():
        raise SourceError(f"cannot write {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise SourceError(f"cannot write {output}: it is a folder")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise SettingsError(f"{output} is the source itself; write somewhere else")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise SourceError(f"cannot write {output}: not allowed, or a read-only place")


def check_pictures(frames: VideoSource, *, limit: int | None) -> tuple[int, int] | None:
    """Read what can be read of a source before the model is loaded.

    Returns:
        (width, height) that hold every picture of a folder; None for what has one size.

    Raises:
        SourceError: there is no picture, or one that cannot be read.
    """
    if isinstance(frames, ImageFolder):
        return frames.check(limit)
    if isinstance(frames, VideoFile):
        frames.check()
    elif not frames.is_live and next(iter(frames), None) is None:
        raise SourceError("there is no picture in this video")
    return None


def region_box(answer: Answer, proposals: Proposals) -> tuple[float, float, float, float] | None:
    """The box that a question was about, if it was about one."""
    if answer.task.region is None:
        return None
    x1, y1, x2, y2 = proposals.xyxy[answer.task.region].tolist()
    return x1, y1, x2, y2


def shown_labels(answer: Answer) -> tuple[str, ...]:
    """The label of each box in words; a visual prompt's are the reference's token otherwise."""
    labels = answer.detections.label
    if answer.task.kind is TaskKind.VISUAL_PROMPT:
        return (f"like box {answer.task.region}",) * len(labels)
    return labels


class GroundedOutput:
    """Draws and writes each frame when it comes, so that what was done is never lost."""

    def __init__(self, path: Path, *, fps: float, size: tuple[int, int] | None = None) -> None:
        self.path = path
        self._video: VideoWriter | None = None
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            self._video = VideoWriter(path, fps=fps, size=size)

    def __enter__(self) -> GroundedOutput:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._video is not None:
            self._video.close()

    def add(self, picture: SourceFrame, grounding: Grounding) -> None:
        """One frame, what was found on it, and the boxes that were asked about."""
        boxes = [
            LabelledBox((x1, y1, x2, y2), label, float(score))
            for answer in grounding.answers
            for (x1, y1, x2, y2), label, score in zip(
                answer.detections.xyxy.tolist(), shown_labels(answer),
                answer.detections.confidence, strict=True,
            )
        ]  # fmt: skip
        boxes += [
            LabelledBox(box, f"box {answer.task.region}")
            for answer in grounding.answers
            if (box := region_box(answer, grounding.proposals)) is not None
        ]
        drawn = draw_boxes(picture.rgb, boxes)
        if self._video is not None:
            self._video.write(drawn, picture.pts_s)
            return
        from PIL import Image

        try:
            Image.fromarray(drawn).save(self.path)
        except OSError as error:
            raise SourceError(f"cannot write {self.path}: {error}") from error
