"""The whole path in bfloat16: the published way to run, close to float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent.features import BFLOAT16, widened
from agent.frame import read_frame
from agent.model.checkpoint import weight_type
from agent.model.vlm_fo1 import Part
from agent.prompts import Task, TaskKind
from agent.stages import local_pipeline
from groundstream.errors import SettingsError
from tests.pictures import encoded_image
from tests.unit.tiny_model import write_tiny_model


async def test_bfloat16_end_to_end(tmp_path):
    directory = str(write_tiny_model(tmp_path / "model"))
    frame = read_frame(encoded_image())
    boxes = np.array([[5, 5, 40, 40], [20, 10, 80, 60]], dtype=np.float32)
    task = Task(TaskKind.DETECT, "dog", max_new_tokens=4)
    features = {}
    for dtype in ("float32", "bfloat16"):
        pipeline = local_pipeline(directory, dtype=dtype)
        grounding = await pipeline.ground(frame, [task], boxes=boxes)
        assert len(grounding.answers) == 1
        features[dtype], _ = await pipeline.features(frame, boxes=boxes, timings=grounding.timings)
    for name in ("primary_regions", "auxiliary_regions", "image_tokens"):
        wide, half = (getattr(features[d], name) for d in ("float32", "bfloat16"))
        assert (wide.dtype, half.dtype) == (np.float32, BFLOAT16), "the towers' own type"
        assert np.corrcoef(wide.ravel(), widened(half).ravel())[0, 1] > 0.99
        assert not np.array_equal(wide, widened(half))


def test_types_by_name():
    for part in Part:
        assert weight_type("float16", "cpu", part) == torch.float16
        assert weight_type("auto", "cuda", part) is None
    with pytest.raises(SettingsError, match="known: auto"):
        weight_type("float8", "cpu", Part.LANGUAGE)


@pytest.mark.parametrize("native", [False, True])
def test_on_a_cpu_only_the_language_model_is_halved_and_only_where_that_is_native(
    monkeypatch, native
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    types = {part: weight_type("auto", "cpu", part) for part in Part}
    assert types.pop(Part.LANGUAGE) == (torch.bfloat16 if native else torch.float32)
    assert set(types.values()) == {torch.float32}
