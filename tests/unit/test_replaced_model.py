"""While a model is replaced, front ends and stages of before and after keep out of each other."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.errors import StageUnavailable
from agent.frame import read_frame
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from agent.settings import ServiceSettings
from deployments.auxiliary_encoder import AuxiliaryEncoder
from deployments.language import Language
from deployments.metrics import ServiceMetrics
from deployments.primary_encoder import PrimaryEncoder
from deployments.proposal import Proposal
from tests.handles import Handle, stages_of
from tests.pictures import encoded_image

_STAGES: list[tuple[type[Any], str]] = [
    (Proposal, "FakeProposer"),
    (PrimaryEncoder, "FakePrimaryEncoder"),
    (AuxiliaryEncoder, "FakeAuxiliaryEncoder"),
    (Language, "FakeLanguage"),
]
_FRAME = read_frame(encoded_image())
_DOG = Task.detect("dog")


@contextlib.asynccontextmanager
async def pipeline(*models: str, overlap: bool = False) -> AsyncIterator[Pipeline]:
    """A front end of the new model over stages of its own."""
    handles = [
        Handle(stage(f"tests.fakes:{fake}", "", "cpu", 1, model_revision=model))
        for (stage, fake), model in zip(_STAGES, models, strict=True)
    ]
    async with stages_of(handles, ServiceMetrics(), model="new", overlap=overlap) as stages:
        yield Pipeline(stages, MemoryRegionCache(), model_digest="new")


@pytest.mark.parametrize("number", range(len(_STAGES)))
async def test_a_stage_of_another_model_refuses_by_type(number: int) -> None:
    models = ["new"] * len(_STAGES)
    models[number] = "old"
    async with pipeline(*models) as front_end:
        with pytest.raises(StageUnavailable, match="being replaced"):
            await front_end.ground(_FRAME, [_DOG])
        with pytest.raises(StageUnavailable, match="being replaced"):
            [piece async for piece in front_end.ask(_FRAME, _DOG)]


@pytest.mark.parametrize("overlap", [False, True])
async def test_stages_of_one_model_work_together(overlap: bool) -> None:
    async with pipeline(*["new"] * len(_STAGES), overlap=overlap) as together:
        assert (await together.ground(_FRAME, [_DOG])).answers[0].detections
        assert [piece async for piece in together.ask(_FRAME, _DOG)]


def test_whatever_changes_features_is_another_model() -> None:
    nano = ServiceSettings()
    others = [
        ServiceSettings(model="/models/larger"),
        ServiceSettings(proposal_network="none"),
        ServiceSettings(proposal_network="/models/boxes"),
    ]
    assert len({settings.model_revision for settings in [nano, *others]}) == 1 + len(others)
    assert ServiceSettings(device="cuda", tenant="acme").model_revision == nano.model_revision
