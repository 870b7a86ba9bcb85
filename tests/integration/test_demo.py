"""The demo driver and the watch command, end to end, on tiny videos and fake stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deployments.local.watch import watch_source
from groundstream import aio
from groundstream.video.sources import open_source
from groundstream.video.writer import VideoWriter
from tests.integration.conftest import ROOT, write_fake_config

_DEMO_S = 150.0


def write_scene(path: Path, *, num_frames: int) -> None:
    """A video of one moving grey level and the truth beside it."""
    with VideoWriter(path, fps=20.0) as video:
        for number in range(num_frames):
            video.write(np.full((64, 96, 3), 20 + 5 * (number % 40), dtype=np.uint8))
    # What the fakes always find.
    boxes = [
        {"image_id": number, "category_id": 1, "bbox": [0, 0, 48, 32]}
        for number in range(num_frames)
    ]
    truth = {
        "images": [{"id": number, "frame_index": number} for number in range(num_frames)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": boxes,
    }
    path.with_suffix(".json").write_text(json.dumps(truth))


def test_the_demo_runs_and_leaves_nothing_behind(empty_model: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "pedestrians.mp4", num_frames=25)
    # A busy machine may leave some out before the query is changed at the 125th answer.
    write_scene(tmp_path / "bikes.mp4", num_frames=180)
    config = write_fake_config(empty_model, tmp_path)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    environment.pop("REDIS_URL", None)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "deployments.cli",
            "demo",
            "--videos",
            tmp_path,
            "--output",
            tmp_path,
            "--config",
            config,
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_DEMO_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "proposals 0, encoders 0, language 5" in done.stdout
    assert "1 then 2" in done.stdout  # The query changed in mid-stream.
    assert done.stdout.rstrip().endswith("annotated.png")
    assert "Traceback" not in done.stderr
    assert len(list(open_source(str(tmp_path / "annotated.mp4")))) == 25
    assert (tmp_path / "annotated.png").stat().st_size > 100


async def test_watching_prints_a_line_per_event_and_writes_the_video(
    service: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path / "scene.mp4", num_frames=6)
    output = tmp_path / "seen.mp4"
    async with aio.Client(service) as client:
        await watch_source(
            client, str(tmp_path / "scene.mp4"), ["dog"], output=output, as_json=True
        )
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events[:2]] == ["StreamOpened", "QueriesAck"]
    assert "resume_token" not in events[0]
    assert events[-1]["event"] == "StreamStats"
    answers = [event for event in events if event["event"] == "FrameResult"]
    assert answers[-1]["sequence"] == 5
    assert answers[-1]["results"][0]["status"] == "OK"
    found = answers[-1]["results"][0]["detections"][0]
    assert found["box"] == pytest.approx([0.0, 0.0, 48.0, 32.0], abs=1.0)
    assert found["track_id"] == 1
    assert len(list(open_source(str(output)))) == 6


async def test_watching_shows_a_table(
    service: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path / "scene.mp4", num_frames=20)
    async with aio.Client(service) as client:
        await watch_source(client, str(tmp_path / "scene.mp4"), ["dog", "absent cat"])
    shown = capsys.readouterr().out
    assert "dog" in shown
    assert "NOT_PRESENT" in shown
    assert "20 received" in shown
