"""Decoding: the shared prefix changes speed and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

from agent.detections import Proposals
from agent.features import FrameFeatures
from agent.generation import LanguageStage
from agent.model.positions import SlotType, mrope_positions
from agent.model.ragged_attention import Prefix
from agent.prefix_cache import PrefixCache
from agent.processor import ImageGeometry
from agent.prompts import Task
from tests.unit.tiny_model import tiny_config, write_tiny_model


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    model = str(write_tiny_model(tmp_path_factory.mktemp("m")))
    return LanguageStage.from_pretrained(model, dtype="float32")


def features(key, num_boxes=3, seed=0):
    rng = np.random.default_rng(seed)
    config = tiny_config(512)
    geometry = ImageGeometry.of(90, 70, config)
    tokens = geometry.merged_grid[0] * geometry.merged_grid[1]
    boxes = rng.uniform(0, 30, (num_boxes, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 5

    def random(rows, columns):
        return rng.normal(size=(rows, columns)).astype(np.float32)

    return FrameFeatures(
        width=90,
        height=70,
        proposals=Proposals(boxes, np.ones(num_boxes, dtype=np.float32)),
        image_tokens=random(tokens, config.vision.out_hidden_size),
        grid=geometry.grid,
        primary_regions=random(num_boxes, config.primary_region_width),
        auxiliary_regions=random(num_boxes, config.auxiliary_region_width),
        key=key,
    )


TASK = Task(Task.detect("dog").kind, "dog", max_new_tokens=8)


def test_reusing_a_prefix_gives_the_same_tokens(stage):
    cold = stage.answer(features("same"), TASK)
    warm = stage.answer(features("same"), TASK)
    assert cold.num_prefix_tokens_reused == 0
    assert warm.num_prefix_tokens_reused > 0
    assert warm.num_passes == cold.num_passes, "a question rides in the pass of its prefix"
    assert warm.pieces == cold.pieces
    assert warm.probabilities == pytest.approx(cold.probabilities, rel=1e-5)


def test_features_without_a_key_are_never_shared(stage):
    assert stage.answer(features(""), TASK).num_prefix_tokens_reused == 0
    assert stage.answer(features(""), TASK).num_prefix_tokens_reused == 0


def test_cached_steps_equal_one_long_pass(stage):
    language = stage._language
    ids = torch.randint(0, language.config.vocab_size, (1, 20))
    positions = torch.arange(20).expand(3, 1, -1)
    embeddings = language.embed(ids)
    with torch.inference_mode():
        whole = language(embeddings, positions)
        cache = DynamicCache()
        parts = [
            language(embeddings[:, a:b], positions[:, :, a:b], cache=cache)
            for a, b in ((0, 12), (12, 19), (19, 20))
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)


def test_prefix_cache_keeps_to_its_budget():
    def prefix(floats):
        layer = torch.zeros(1, floats, 1)
        return Prefix(((layer, layer),), 0)

    cache = PrefixCache(budget_bytes=100)
    cache.put("a", prefix(5))  # 40 bytes
    cache.put("b", prefix(5))
    assert cache.get("a")
    cache.put("c", prefix(5))
    assert cache.get("b") is None, "the least recently used goes first"
    assert cache.get("a")
    cache.put("huge", prefix(50))
    assert cache.get("huge") is None
    assert cache.num_bytes <= 100


def test_positions_of_an_image_block():
    slots = torch.tensor([SlotType.TEXT] * 2 + [SlotType.IMAGE] * 6 + [SlotType.TEXT] * 2)
    positions, following = mrope_positions(slots, (2, 3))
    assert positions[0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert positions[1].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert positions[2].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert following == 7
