"""Checkpoints in the layout of Meta's repository, as `SamModel` of transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SamConfig, SamModel

from ddp_magic.sam.process_group import print0

# Regular expressions for names in Meta's repository, and names in transformers, in this order.
NAMES = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.blocks\.", ".layers."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.neck\.0\.", ".neck.conv1."),
    (r"\.neck\.1\.", ".neck.layer_norm1."),
    (r"\.neck\.2\.", ".neck.conv2."),
    (r"\.neck\.3\.", ".neck.layer_norm2."),
    (r"\.norm(\d|_final)", r".layer_norm\1"),
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"(_mlps\.\d+|_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(_mlps\.\d+|_head)\.layers\.2\.", r"\1.proj_out."),
    (r"(_mlps\.\d+|_head)\.layers\.1\.", r"\1.layers.0."),
)
POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
NORMALIZATION = {"pixel_mean", "pixel_std"}  # constants, which some checkpoints contain


def load_meta_checkpoint(path: str | Path) -> SamModel:
    """Load a checkpoint in the layout of Meta's repository into a `SamModel`.

    Such are `sam_vit_b_01ec64.pth` and those of ViT-L and ViT-H by Meta, and fine-tuned ones with
    the same names, such as those of MedSAM and micro-sam. The sizes are taken from the shapes of
    the weights. The decoder of instances of micro-sam, a different one, is left out.

    Args:
        path: a file that `torch.save` has written: the weights by name, or a dict with the weights
            as `model_state`, `model`, `state_dict`, `model_state_dict` or `net`.

    Returns:
        The model, on the CPU, for `train`, `segment` or `save_pretrained`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no such checkpoint; or names are missing or unexpected, or shapes do
            not fit, which are listed.
    """
    path = Path(path).expanduser()
    try:
        saved: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what it meets
        if isinstance(error, OSError):
            raise
        raise ValueError(
            f"{path} does not contain only weights: {str(error).partition('. ')[0]}. Save the "
            "state_dict of the model alone (micro-sam: export_custom_sam_model)"
        ) from error
    weights = _weights(saved)
    if "image_encoder.pos_embed" not in weights:
        names = list(weights or (saved if isinstance(saved, dict) else {}))[:3]
        some = ", ".join(map(str, names)) or type(saved).__name__
        raise ValueError(f"{path} is not a SAM in Meta's layout: it contains {some}")
    if isinstance(saved, dict) and "decoder_state" in saved:
        print0(f"{path}: the decoder of instances of micro-sam is left out")
    renamed = {_renamed(name): value for name, value in weights.items()}
    renamed["shared_image_embedding.positional_embedding"] = renamed.get(POSITIONS, torch.zeros(0))
    try:
        model = SamModel(_config(weights))
    except KeyError as error:
        raise ValueError(f"{path} has no {error.args[0]}: the file is incomplete") from error
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:  # it lists names and shapes
        raise ValueError(f"{path} does not fit SamModel: {error}") from error
    return model


def _weights(saved: Any) -> dict[str, Tensor]:  # noqa: ANN401 -- what a file contains
    """Return the weights by name, without the prefix of a wrapper or of DDP."""
    for key in ("model_state", "model", "state_dict", "model_state_dict", "net"):
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    if not isinstance(saved, dict):
        return {}
    tensors = {str(name): value for name, value in saved.items() if isinstance(value, Tensor)}
    short = {re.sub(r"^((module|sam|model|net)\.)+", "", name): x for name, x in tensors.items()}
    return {name: x for name, x in short.items() if name not in NORMALIZATION}


def _renamed(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _config(weights: dict[str, Tensor]) -> SamConfig:
    """Return the configuration of the model with these weights, by Meta's names."""
    _, grid, _, width = weights["image_encoder.pos_embed"].shape
    patch = weights["image_encoder.patch_embed.proj.weight"].shape[-1]
    block = re.compile(r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_h$")
    tables = {int(m[1]): x for name, x in weights.items() if (m := block.match(name))}
    whole = [number for number, x in sorted(tables.items()) if len(x) == 2 * grid - 1]
    windows = {(len(x) + 1) // 2 for number, x in tables.items() if number not in whole}
    channels = weights["image_encoder.neck.0.weight"].shape[0]
    sizes = {"image_size": grid * patch, "patch_size": patch}
    first = weights["mask_decoder.transformer.layers.0.mlp.lin1.weight"]
    vision = {
        "hidden_size": width,
        "output_channels": channels,
        "num_hidden_layers": len(tables),
        "num_attention_heads": width // tables[0].shape[1],
        "window_size": max(windows, default=14),
        "global_attn_indexes": whole,
        "num_pos_feats": channels // 2,
        "mlp_dim": weights["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
    }
    prompts = weights["prompt_encoder.mask_downscaling.3.weight"].shape[0]
    decoder = {
        "mlp_dim": first.shape[0],
        "num_multimask_outputs": weights["mask_decoder.mask_tokens.weight"].shape[0] - 1,
        "iou_head_hidden_dim": weights["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    }
    return SamConfig(
        vision_config=vision | sizes,
        prompt_encoder_config={"hidden_size": channels, "mask_input_channels": prompts, **sizes},
        mask_decoder_config={"hidden_size": channels, **decoder},
    )
