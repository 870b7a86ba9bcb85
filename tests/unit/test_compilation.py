"""Compiled blocks: the same numbers, one tracing for all sizes, and nothing on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.models.florence2.modeling_florence2 import Florence2VisionMLP

from agent.encoders import AuxiliaryEncoderStage, PrimaryEncoderStage
from agent.engine import Engine
from agent.model.compilation import compile_blocks, pass_size
from agent.model.language_model import LanguageModel
from agent.prefix_cache import PrefixCache
from tests.unit.test_engine import request
from tests.unit.tiny_model import tiny_config, tiny_tokenizer, write_tiny_model


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


def test_compiled_layers_write_the_same_in_a_few_fixed_sizes():
    def language(num_layers):
        torch.manual_seed(3)
        text = tiny_config(tiny_tokenizer().vocab_size).text
        shape = replace(text, num_hidden_layers=num_layers)
        made = LanguageModel("qwen2_5_vl_text", shape, tie_word_embeddings=True).eval()
        torch.nn.init.normal_(made.model.embed_tokens.weight, std=0.5)
        return made

    def written(engine, model, counts):
        asked = [
            request(model, number, [5, 9 + number], count=4)
            for count in counts
            for number in range(count)
        ]
        return [future.result(60).ids for future in [engine.submit(one) for one in asked]]

    num_graphs = []
    for num_layers in (1, 3):
        plain, traced = (Engine(language(num_layers), PrefixCache(2**24)) for _ in range(2))
        torch._dynamo.reset()
        started = num_traced()
        traced.compile(backend="eager")
        try:
            for counts in [(1,), (3,), (2, 5), (1, 1)]:
                ours = written(traced, traced._language, counts)
                assert ours == written(plain, plain._language, counts)
            num_graphs.append(num_traced() - started)
            written(traced, traced._language, (4, 2))
            assert num_traced() - started == num_graphs[-1], "no size is traced twice"
        finally:
            plain.close()
            traced.close()
    assert num_graphs[0] == num_graphs[1] > 0, "layers share their graphs"


def test_a_pass_is_filled_up_or_left_alone():
    assert [pass_size(count) for count in (1, 8, 9, 512, 513)] == [8, 8, 32, 512, None]


def test_a_cpu_compiles_nothing(directory):
    stage = AuxiliaryEncoderStage.from_pretrained(directory, compiled=True)
    assert all(block._compiled_call_impl is None for block in stage.model.modules())
