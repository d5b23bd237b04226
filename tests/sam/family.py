"""A tiny model of each family, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    Sam3TrackerConfig,
    Sam3TrackerMaskDecoderConfig,
    Sam3TrackerModel,
    Sam3TrackerPromptEncoderConfig,
    Sam3VisionConfig,
    Sam3ViTConfig,
    SamHQConfig,
    SamHQMaskDecoderConfig,
    SamHQModel,
    SamHQPromptEncoderConfig,
    SamHQVisionConfig,
)

from ddp_magic.prelude import tiny_sam

SMALL = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def tiny_sam_hq() -> Any:
    vision = SamHQVisionConfig(
        hidden_size=32,
        output_channels=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        window_size=6,
        global_attn_indexes=[0, 2],
        num_pos_feats=16,
        initializer_range=0.08,
    )
    vision.scale = 1.0
    prompt = SamHQPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=8)
    decoder = SamHQMaskDecoderConfig(**SMALL, vit_dim=32)
    return SamHQModel(
        SamHQConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    )


def tiny_sam2() -> Any:
    backbone = Sam2HieraDetConfig(
        image_size=[128, 128],
        hidden_size=16,
        num_attention_heads=1,
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[4],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=32, image_size=128, patch_size=16)
    decoder = Sam2MaskDecoderConfig(**SMALL)
    return _same_positions(
        Sam2Model(
            Sam2Config(
                vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
            )
        )
    )


def tiny_sam3() -> Any:
    backbone = Sam3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=112,
        patch_size=14,
        window_size=4,
        global_attn_indexes=[1],
        pretrain_image_size=56,
    )
    vision = Sam3VisionConfig(
        backbone_config=backbone,
        fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )
    prompt = Sam3TrackerPromptEncoderConfig(hidden_size=32, image_size=112, patch_size=14)
    decoder = Sam3TrackerMaskDecoderConfig(**SMALL)
    return _same_positions(
        Sam3TrackerModel(
            Sam3TrackerConfig(
                vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
            )
        )
    )


def _same_positions(sam: Any) -> Any:
    """Copy the positional encoding of the image to the prompts, as in real checkpoints."""
    with torch.no_grad():
        sam.prompt_encoder.shared_embedding.positional_embedding.copy_(
            sam.shared_image_embedding.positional_embedding
        )
    return sam


FAMILY = {"sam": tiny_sam, "sam_hq": tiny_sam_hq, "sam2": tiny_sam2, "sam3_tracker": tiny_sam3}


def build(kind: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FAMILY[kind]()
