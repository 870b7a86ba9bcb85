"""Following on a labelled video: the truth scores full marks, and files are checked first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.evaluation.oracle import OracleSettings, OracleStages, TrueFrame
from agent.evaluation.video_tracks import (
    FOLLOWED,
    GROUNDED,
    TRACKED,
    load_video,
    measure_video,
)
from agent.pipeline import Pipeline
from agent.region_cache import MemoryRegionCache
from groundstream.errors import SourceError
from groundstream.video.writer import VideoWriter
from tests.moving_pictures import HEIGHT, WIDTH, MovingPicture

FPS, NUM_FRAMES, EVERY = 10.0, 21, 5


def place(index: int) -> tuple[int, int]:
    return 40 + 4 * index, 60 + 2 * index


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One thing that crosses a picture which stands still."""
    picture, path = MovingPicture(), tmp_path_factory.mktemp("video") / "thing.mp4"
    with VideoWriter(path, fps=FPS) as writer:
        for index in range(NUM_FRAMES):
            grey = picture.grey(at=place(index))
            writer.write(np.repeat(grey[:, :, None], 3, axis=2))
    return path


def labels(**changes: Any) -> dict[str, list[dict[str, Any]]]:
    indices = range(0, NUM_FRAMES, EVERY)
    made = {
        "images": [{"id": 1 + k, "frame_index": k, "file_name": f"{k}.png", "width": WIDTH,
                    "height": HEIGHT} for k in indices],
        "annotations": [{"id": 1 + k, "image_id": 1 + k, "category_id": 1, "track_id": 7,
                         "bbox": [*place(k), 60, 50], "iscrowd": 0} for k in indices],
        "categories": [{"id": 1, "name": "thing"}, {"id": 2, "name": "nothing"}],
    }  # fmt: skip
    return made | changes


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(content: object) -> Path:
        file = tmp_path / "tracks.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    return written


def pipeline() -> Pipeline:
    """The truth about every frame, labelled or not."""
    truth = {}
    for index in range(NUM_FRAMES):
        x, y = place(index)
        box = np.array([[x, y, x + 60, y + 50]], dtype=np.float32)
        truth[index] = TrueFrame(box, ("thing",), np.array([1]))
    faultless = OracleSettings(jitter=0.0, missed=0.0, appearance_noise=0.0)
    return Pipeline(OracleStages(truth, faultless), MemoryRegionCache(), model_digest="truth")


async def test_the_truth_on_every_frame_scores_full_marks(video: Path, write: Any) -> None:
    data = load_video(video, write(labels()))
    assert (data.queries, data.num_frames, len(data.truth)) == (("thing",), 21, 5)
    scores = await measure_video(pipeline(), data, key_every=10)
    assert list(scores) == [FOLLOWED, TRACKED, GROUNDED]
    grounded = scores[GROUNDED]
    assert (grounded.hota, grounded.idf1) == (pytest.approx(1.0), pytest.approx(1.0))
    assert scores[TRACKED].idf1 == pytest.approx(1.0)
    # Frames 5 and 15 are followed, by whatever the picture shows; the others are key frames.
    followed = scores[FOLLOWED]
    assert followed.idf1 == pytest.approx(1.0)
    assert followed.hota > 0.8
    # 3 of 21 frames, in the two seconds up to the last.
    assert followed.keyframes_per_s == pytest.approx(1.5)
    assert grounded.keyframes_per_s == pytest.approx(10.5)
    assert followed.age_p50_ms == pytest.approx(0.0)
    assert followed.age_p99_ms == pytest.approx(500.0, abs=1.0)


async def test_late_answers(video: Path, write: Any) -> None:
    data = load_video(video, write(labels()))
    scores = await measure_video(pipeline(), data, key_every=5, latency_s=0.6, every_frame=False)
    assert list(scores) == [FOLLOWED]
    # Asked at 0, 1 and 2 s (at 0.5 and 1.5 s the last one is still being answered); the first two
    # labelled frames have no answer yet.
    assert scores[FOLLOWED].keyframes_per_s == pytest.approx(1.5)
    assert scores[FOLLOWED].pending == pytest.approx(2 / 5)
    assert scores[FOLLOWED].idf1 < 0.9


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "not a COCO file of tracks"), ("[]", "not a COCO file of tracks"),
     (labels(images=[{"id": 1, "width": 1, "height": 1}]), "frame_index"),
     (labels(images=[{"id": 1, "frame_index": -1, "width": 1, "height": 1}]), "negative"),
     (labels(annotations=[]), "nothing to measure"),
     (labels(annotations=[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}]), "track_id"),
     (labels(annotations=2 * labels()["annotations"]), "twice"),
     (labels(images=[{"id": 1, "frame_index": 0, "width": 9, "height": 9}]), "9x9"),
     (labels(images=[{"id": 1, "frame_index": 50, "width": WIDTH, "height": HEIGHT}]),
      "21 frames, but frame 50")],
)  # fmt: skip
def test_labels_that_do_not_fit(video: Path, write: Any, content: object, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load_video(video, write(content))


def test_files_that_are_not_there(video: Path, write: Any, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        load_video(video, tmp_path / "none.json")
    with pytest.raises(SourceError, match="does not exist"):
        load_video(tmp_path / "none.mp4", write(labels()))
