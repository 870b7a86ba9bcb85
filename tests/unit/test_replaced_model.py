"""During an update, front ends and stages of before and after keep out of each other."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import make_dataclass

import pytest

from agent.frame import read_frame
from agent.prompts import Task
from agent.settings import ServiceSettings
from deployments.observability.metrics import ServiceMetrics
from deployments.stages import requests
from deployments.stages.requests import FrameCall, FrameReply, revision_of, shapes_of
from groundstream.errors import StageUnavailable
from tests.handles import remote_pipeline
from tests.pictures import encoded_image

_FRAME = read_frame(encoded_image())
_DOG = Task.detect("dog")
_NEW = revision_of(ServiceSettings())


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("number", range(4))
async def test_a_stage_of_another_model_refuses_by_type(number: int, overlap: bool) -> None:
    models = [_NEW] * 4
    models[number] = "old"
    service = remote_pipeline(ServiceMetrics(), models=models, overlap=overlap)
    with pytest.raises(StageUnavailable, match="being updated"):
        await service.ground(_FRAME, [_DOG])
    with pytest.raises(StageUnavailable, match="being updated"):
        [piece async for piece in service.ask(_FRAME, _DOG)]


@pytest.mark.parametrize("overlap", [False, True])
async def test_stages_of_one_model_work_together(overlap: bool) -> None:
    service = remote_pipeline(ServiceMetrics(), overlap=overlap)
    assert (await service.ground(_FRAME, [_DOG])).answers[0].detections
    assert [piece async for piece in service.ask(_FRAME, _DOG)]


def test_whatever_changes_features_is_another_model() -> None:
    usual = ServiceSettings()
    others = [
        ServiceSettings(model="/models/larger"),
        ServiceSettings(proposal_network="none"),
        ServiceSettings(proposal_network="/models/boxes"),
    ]
    assert len({settings.model_revision for settings in [usual, *others]}) == 1 + len(others)
    assert ServiceSettings(device="cuda", tenant="acme").model_revision == usual.model_revision


def test_whatever_changes_calls_is_another_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [("box", int)]
    held, renamed, grown, retyped = (
        make_dataclass("Held", known)
        for known in (fields, [("place", int)], [*fields, ("label", str)], [("box", float)])
    )
    shapes = [
        str(shapes_of(make_dataclass("Call", [("held", tuple[kind, ...] | None)])))
        for kind in (held, renamed, grown, retyped)
    ]
    assert len(set(shapes)) == len(shapes)
    assert shapes_of(held) == shapes_of(make_dataclass("Held", fields))
    now = revision_of(ServiceSettings())
    monkeypatch.setattr(requests, "_calls_digest", lambda: "of another version")
    assert revision_of(ServiceSettings()) != now


def test_all_that_travels_in_a_call_counts() -> None:
    shapes = shapes_of(FrameCall, FrameReply)
    assert {"agent.frame.Frame", "agent.prompts.Task", "agent.prompts.Exchange"} <= set(shapes)
    assert {"agent.pipeline.Grounding", "agent.parsing.Answer"} <= set(shapes)


def test_every_process_names_the_same_revision() -> None:
    code = "from deployments.stages import requests; print(requests._calls_digest())"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert said == {f"{requests._calls_digest()}\n"}
