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
from agent.training.artwork import load_concepts
from agent.training.batches import nano_concepts

DEMO = Path(__file__).parents[2] / "demo"


def test_the_weights_are_small():
    directory = find_model().path
    size = sum(file.stat().st_size for file in directory.rglob("*.safetensors"))
    assert size < 25_000_000


async def test_what_is_there_is_found_and_what_is_not_is_not():
    truth = json.loads((DEMO / "scene.json").read_text())["frames"]
    known = [load_concepts()[concept].label for concept in nano_concepts()]
    pipeline, rng = local_pipeline(), np.random.default_rng(0)
    proposed = found = total = wrong = refused = 0
    for index, picture in enumerate(islice(open_source(str(DEMO / "scene.mp4")), 0, 100, 20)):
        objects = truth[20 * index]["objects"]
        present = sorted({o["label"] for o in objects})
        absent = rng.choice(sorted(set(known) - set(present)), 40, replace=False).tolist()
        asked = [*present, *absent]
        frame = frame_from_rgb(picture.rgb)
        grounding = await pipeline.ground(frame, [Task.detect(label) for label in asked])
        answers = dict(zip(asked, grounding.answers, strict=True))
        wrong += sum(len(answers[label].detections) > 0 for label in absent)
        refused += len(absent)
        for thing in objects:
            box = np.array([thing["xyxy"]], dtype=np.float32)
            boxes = answers[thing["label"]].detections.xyxy
            proposed += box_iou(box, grounding.proposals.xyxy).max() >= 0.5
            found += len(boxes) > 0 and box_iou(box, boxes).max() >= 0.5
            total += 1
    assert proposed >= 0.75 * total
    assert found >= 0.6 * total
    assert wrong <= 0.25 * refused
