"""Compiled blocks: the same numbers, one tracing for all sizes, and nothing on a CPU."""

from __future__ import annotations

import pytest
import torch
from transformers.models.florence2.modeling_florence2 import Florence2VisionMLP

from agent.encoders import AuxiliaryEncoderStage, PrimaryEncoderStage
from agent.model.compilation import compile_blocks
from tests.unit.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))


def num_traced():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    ("stage", "num_parts", "shapes"),
    [
        (PrimaryEncoderStage, 2, [(24, 16), (60, 16)]),
        (AuxiliaryEncoderStage, 8, [(2, 24, 8), (2, 60, 8)]),
    ],
)
def test_a_compiled_block_gives_the_same_numbers(directory, stage, num_parts, shapes):
    # Traced for real, run by PyTorch: compiling for a CPU takes minutes and gains nothing.
    plain, traced = (stage.from_pretrained(directory).model for _ in range(2))
    assert len(compile_blocks(traced, backend="eager")) == num_parts
    started = num_traced()
    seen = []
    for shape in shapes:
        inputs = torch.randn(shape)
        with torch.inference_mode():
            theirs, ours = (_first(model)(inputs) for model in (plain, traced))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        seen.append(num_traced())
    assert seen[0] > started, "it was traced"
    assert seen[1] == seen[0], "another size is not traced anew"


def _first(model):
    if model.primary_encoder is not None:
        return model.primary_encoder.tower.blocks[0].mlp
    blocks = model.auxiliary_encoder.tower.blocks
    return next(module for module in blocks.modules() if isinstance(module, Florence2VisionMLP))


def test_a_cpu_compiles_nothing(directory):
    stage = AuxiliaryEncoderStage.from_pretrained(directory, compiled=True)
    assert all(block._compiled_call_impl is None for block in stage.model.modules())
