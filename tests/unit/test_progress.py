"""Computing is told from standing still, layer by layer."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time

import pytest
import torch
from torch import nn

from agent import progress
from agent.encoders import AuxiliaryEncoderStage, PrimaryEncoderStage
from agent.frame import read_frame
from agent.model.vlm_fo1 import VLMFO1
from agent.model.watched_layers import watch
from agent.settings import ServiceSettings
from agent.stage_settings import StageFactories
from agent.urgency import Limits
from deployments.stages.queue import StageQueue
from deployments.stages.vision import Proposal
from groundstream.errors import StageUnavailable
from tests.fakes import FakeProposer
from tests.pictures import encoded_image
from tests.unit.tiny_model import tiny_config

_HANG_S = 0.2


class Layers(nn.Module):
    """Layers in a list, called by a loop that is not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Moments at which a layer came to its end."""
    moments: list[float] = []

    def note() -> None:
        moments.append(time.monotonic())

    for module in ("watched_layers", "primary_encoder", "auxiliary_encoder"):
        monkeypatch.setattr(f"agent.model.{module}.layer_done", note)
    return moments


def test_a_watched_network_tells_of_each_layer(ends: list[float]) -> None:
    network = Layers()
    network(torch.zeros(1, 2))
    assert not ends
    watch(network)
    network(torch.zeros(1, 2))
    assert len(ends) == 3


@pytest.mark.parametrize("stage", [PrimaryEncoderStage, AuxiliaryEncoderStage])
def test_an_encoder_tells_of_each_of_its_blocks(stage, ends: list[float]) -> None:
    config = tiny_config(100)
    encoder = stage(VLMFO1(config).eval())
    encoder.start([read_frame(encoded_image(1))])
    depth = config.vision.depth if stage is PrimaryEncoderStage else sum(config.davit.depths)
    assert len(ends) == depth


def test_a_layer_that_computes_on_a_busy_machine_is_not_standing_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall_s, used_s = 100.0, 5.0
    monkeypatch.setattr(time, "monotonic", lambda: wall_s)
    monkeypatch.setattr(time, "process_time", lambda: used_s)
    progress.layer_done()
    wall_s, used_s = 400.0, 25.0  # A fifteenth of a processor, for five minutes.
    assert progress.still_since_s(100.0) == 20.0
    wall_s, used_s = 400.0, 6.0  # What a process uses that waits.
    assert progress.still_since_s(100.0) == 300.0
    assert progress.still_since_s(150.0) == 250.0


async def test_a_stage_that_goes_on_layer_by_layer_is_well_and_one_that_stands_still_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Threads of other tests use the processor; a replica has its process to itself.
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    queue, may_end = StageQueue(), threading.Event()

    def compute(num_layers: int) -> None:
        for _ in range(num_layers):
            time.sleep(_HANG_S / 4)
            progress.layer_done()
        may_end.wait(10)

    usual = ServiceSettings(stages=StageFactories(proposal="tests.fakes:FakeProposer"))
    stream = dataclasses.replace(usual.stream, stage_hang_s=_HANG_S)
    replica = Proposal(dataclasses.replace(usual, stream=stream))
    assert isinstance(replica.stage, FakeProposer)
    replica.queue = queue
    running = asyncio.create_task(queue.run(queue.ticket(Limits()), compute, 12))
    began_s = time.monotonic()
    while time.monotonic() - began_s < 2 * _HANG_S:
        await asyncio.sleep(0.01)
        replica.check_health()
    await asyncio.sleep(3 * _HANG_S)
    with pytest.raises(StageUnavailable, match="no layer has come to its end"):
        replica.check_health()
    may_end.set()
    await running
    while queue.stalled_s():
        await asyncio.sleep(0.01)
    replica.check_health()
