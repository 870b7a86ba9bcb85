"""A model directory of the real architecture with random weights, small enough for unit tests."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTextConfig, OmDetTurboConfig, SwinConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from agent.model.checkpoint import save_model
from agent.model.configuration import (
    DaViTConfig,
    ImageConfig,
    ProposalConfig,
    RegionConfig,
    VLMFO1Config,
)
from agent.model.decoder_shape import DecoderShape
from agent.model.proposal_network import ProposalNetwork, save_proposal_network
from agent.model.vlm_fo1 import VLMFO1
from agent.tokenizer import PromptTokenizer, train_tokenizer
from agent.training.mixture import corpus

NAMES = ["dog", "cat", "red apple", "teddy bear"]


def tiny_tokenizer() -> PromptTokenizer:
    return train_tokenizer(corpus(NAMES), 512)


def tiny_config(vocab_size: int) -> VLMFO1Config:
    return VLMFO1Config(
        vision=Qwen2_5_VLVisionConfig(
            depth=2,
            hidden_size=16,
            intermediate_size=32,
            num_heads=2,
            out_hidden_size=32,
            window_size=56,
            fullatt_block_indexes=[1],
        ),
        text=DecoderShape(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            max_position_embeddings=512,  # Random weights never stop: half of it is written.
            rope_theta=1e4,
            mrope_section=(1, 1, 2),
        ),
        davit=DaViTConfig((1, 1, 1, 1), (8, 16, 16, 24), (1, 2, 2, 2), 4),
        region=RegionConfig(pyramid_width=8),
        image=ImageConfig(max_long_side=112),
        proposal=ProposalConfig(score_threshold=0.0, nms_iou=0.6, max_boxes=8),
    )


def tiny_proposal_config() -> OmDetTurboConfig:
    return OmDetTurboConfig(
        backbone_config=SwinConfig(
            image_size=64,
            patch_size=4,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=4,
            out_indices=[2, 3, 4],
        ),
        text_config=CLIPTextConfig(
            vocab_size=8,
            hidden_size=24,
            intermediate_size=16,
            projection_dim=24,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=8,
            bos_token_id=1,
            eos_token_id=7,
        ).to_dict(),
        apply_layernorm_after_vision_backbone=False,
        image_size=64,
        text_projection_in_dim=24,
        text_projection_out_dim=24,
        task_encoder_hidden_dim=16,
        class_embed_dim=24,
        num_queries=20,
        encoder_hidden_dim=16,
        encoder_in_channels=(16, 32, 64),
        encoder_attention_heads=1,
        encoder_dim_feedforward=16,
        vision_features_channels=(16, 16, 16),
        decoder_hidden_dim=16,
        decoder_num_heads=1,
        decoder_num_layers=1,
        decoder_dim_feedforward=16,
    )


def write_tiny_model(directory: Path, *, seed: int = 0) -> Path:
    """A complete model directory; the same seed gives the same weights."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    save_model(VLMFO1(tiny_config(tokenizer.vocab_size)), directory)
    tokenizer.save(directory)
    save_proposal_network(ProposalNetwork(tiny_proposal_config()), directory / "proposal")
    return directory
