"""While a model is replaced, front ends and stages of before and after keep out of each other."""

from __future__ import annotations

import pytest

from agent.frame import read_frame
from agent.prompts import Task
from agent.settings import ServiceSettings
from deployments.observability.metrics import ServiceMetrics
from groundstream.errors import StageUnavailable
from tests.handles import remote_pipeline
from tests.pictures import encoded_image

_FRAME = read_frame(encoded_image())
_DOG = Task.detect("dog")
_NEW = ServiceSettings().model_revision


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("number", range(4))
async def test_a_stage_of_another_model_refuses_by_type(number: int, overlap: bool) -> None:
    models = [_NEW] * 4
    models[number] = "old"
    service = remote_pipeline(ServiceMetrics(), models=models, overlap=overlap)
    with pytest.raises(StageUnavailable, match="being replaced"):
        await service.ground(_FRAME, [_DOG])
    with pytest.raises(StageUnavailable, match="being replaced"):
        [piece async for piece in service.ask(_FRAME, _DOG)]


@pytest.mark.parametrize("overlap", [False, True])
async def test_stages_of_one_model_work_together(overlap: bool) -> None:
    service = remote_pipeline(ServiceMetrics(), overlap=overlap)
    assert (await service.ground(_FRAME, [_DOG])).answers[0].detections
    assert [piece async for piece in service.ask(_FRAME, _DOG)]


def test_whatever_changes_features_is_another_model() -> None:
    nano = ServiceSettings()
    others = [
        ServiceSettings(model="/models/larger"),
        ServiceSettings(proposal_network="none"),
        ServiceSettings(proposal_network="/models/boxes"),
    ]
    assert len({settings.model_revision for settings in [nano, *others]}) == 1 + len(others)
    assert ServiceSettings(device="cuda", tenant="acme").model_revision == nano.model_revision
