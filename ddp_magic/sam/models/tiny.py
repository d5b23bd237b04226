"""A tiny SAM with random weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import SamConfig, SamModel, SamVisionConfig


def tiny_sam(image_size: int = 64, patch_size: int = 8, width: int = 96, seed: int = 0) -> SamModel:
    """Create a SAM with 0.8 million parameters and random weights, the same on all ranks.

    The default initialization of transformers is meant for loading Meta's weights. A model trained
    from it does not learn to use the prompt: the encoder starts at zero (initializer_range 1e-10);
    the frequencies of the positional encoding are so high (scale width / 2) that neighboring pixels
    are unrelated; and the embeddings that distinguish clicks, boxes and labels, with a standard
    deviation of initializer_range, are negligible beside the positional encoding, with 0.7. Here
    the first and the last are close to Meta's trained weights, and the scale of the frequencies is
    0.5, half of Meta's: after the first epoch of the demo, Dice was .76, and .53 with Meta's scale.

    Args:
        image_size: side of the input square, in pixels; a multiple of `patch_size`.
        patch_size: side of a patch, in pixels. Masks have 4 pixels per patch and axis.
        width: number of channels; a multiple of 8.
        seed: seed for the weights. The global random state does not change.

    Returns:
        The model, on the CPU.
    """
    if image_size % patch_size or width % 8:
        raise ValueError(
            f"invalid image_size {image_size} or width {width}: use a multiple of patch_size, "
            f"{patch_size}, and a multiple of 8"
        )
    sizes = {"image_size": image_size, "patch_size": patch_size}
    vision = SamVisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=width,
        output_channels=width,
        num_pos_feats=width // 2,
        num_hidden_layers=3,
        num_attention_heads=4,
        global_attn_indexes=[0, 1, 2],
        window_size=6,
        initializer_range=0.08,
    )
    vision.scale = 0.5  # type: ignore[assignment]  # SamVisionConfig(scale=...) is overwritten
    decoder = {"mlp_dim": 2 * width, "num_attention_heads": 4, "iou_head_hidden_dim": width}
    config = SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": width, **sizes},
        mask_decoder_config={"hidden_size": width, **decoder},
        initializer_range=0.08,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = SamModel(config)
        for module in sam.modules():
            if isinstance(module, nn.Embedding):  # of prompts, of masks and of IoU
                module.reset_parameters()  # to a standard deviation of 1
        return sam
