"""Tiny models with random weights of every language family, as the stages take them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from agent.detections import Proposals
from agent.features import FrameFeatures
from agent.generation import LanguageStage
from agent.model.configuration import VLMFO1Config
from agent.model.vlm_fo1 import VLMFO1
from agent.processor import ImageGeometry
from agent.stage_settings import EngineSettings
from agent.tokenizer import PromptTokenizer
from tests.unit.tiny_model import tiny_config, tiny_tokenizer

FAMILIES = ("qwen2_5_vl", "llama", "llava_onevision")


def family_config(family: str, vocab_size: int) -> VLMFO1Config:
    """The tiny model with another family's language model; its vision parts stay."""
    config = tiny_config(vocab_size)
    if family == config.family:
        return config
    text = replace(
        config.text, max_position_embeddings=4096, bos_token_id=0, eos_token_id=2,
        mrope_section=None,
    )  # fmt: skip
    return replace(config, family=family, text=text)


def family_model(family: str, tokenizer: PromptTokenizer, *, seed: int = 3) -> VLMFO1:
    """A model whose next token depends on what stands before, random as it is."""
    torch.manual_seed(seed)
    model = VLMFO1(family_config(family, tokenizer.vocab_size)).eval()
    assert model.language_model is not None
    torch.nn.init.normal_(model.language_model.model.embed_tokens.weight, std=0.5)
    return model


def family_stage(family: str, engine: EngineSettings | None = None) -> LanguageStage:
    """The language stage of `family_model`."""
    tokenizer = tiny_tokenizer()
    return LanguageStage(family_model(family, tokenizer), tokenizer, engine=engine)


def random_features(
    config: VLMFO1Config, key: str = "", *, num_boxes: int = 3, seed: int = 0
) -> FrameFeatures:
    """Features of a made-up frame of 90 x 70 pixels, as wide as the model wants them."""
    rng = np.random.default_rng(seed)
    grid = ImageGeometry.of(90, 70, config).grid
    rows, columns = config.token_grid(grid) or (0, 0)
    boxes = rng.uniform(0, 30, (num_boxes, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 5

    def random(length: int, width: int) -> np.ndarray:
        return rng.normal(size=(length, width)).astype(np.float32)

    return FrameFeatures(
        width=90,
        height=70,
        proposals=Proposals(boxes, np.ones(num_boxes, dtype=np.float32)),
        image_tokens=random(rows * columns, config.primary_kind.token_width(config.vision)),
        grid=grid,
        primary_regions=random(num_boxes, config.primary_region_width),
        auxiliary_regions=random(num_boxes, config.auxiliary_region_width),
        key=key,
    )
