"""The embedded model: complete, within its size, and of use on the demo's scene."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np

from agent.detections import box_iou
from agent.frame import frame_from_rgb
from agent.model_directory import find_model
from agent.prompts import Task
from agent.stages import local_pipeline
from agent.streaming.video_source import open_source

DEMO = Path(__file__).parents[2] / "demo"


def test_the_weights_are_small():
    directory = find_model().path
    size = sum(file.stat().st_size for file in directory.rglob("*.safetensors"))
    assert size < 25_000_000


async def test_most_objects_of_the_demo_are_proposed():
    truth = json.loads((DEMO / "scene.json").read_text())["frames"]
    pipeline = local_pipeline()
    hits = total = 0
    for index, picture in enumerate(islice(open_source(str(DEMO / "scene.mp4")), 0, 60, 20)):
        frame = frame_from_rgb(picture.rgb)
        grounding = await pipeline.ground(frame, [Task.detect("dog")])
        boxes = np.array([o["xyxy"] for o in truth[20 * index]["objects"]], dtype=np.float32)
        hits += int((box_iou(boxes, grounding.proposals.xyxy).max(axis=1) >= 0.5).sum())
        total += len(boxes)
        assert grounding.answers[0].text.startswith("<ground>dog</ground><objects>")
    assert hits >= 0.6 * total
