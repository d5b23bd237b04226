"""What differs between the models of the SAM family, in one place.

SamModel, SamHQModel, Sam2Model and Sam3TrackerModel take prompts alike. They differ in how an image
becomes a square, and in what their encoder hands to the decoder: here always a tuple of tensors
with the images first, so that one code picks, stores and moves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddp_magic.sam.batches import MEAN, STD, Geometry
from ddp_magic.sam.layers import faster_encoder

HALF = (127.5, 127.5, 127.5)  # SAM 3's mean and standard deviation, in gray levels
KINDS = ("sam", "sam_hq", "sam2", "sam3_tracker")

Sam = Any  # a model of the family: their classes share no base that has their parts
Maps = tuple[Tensor, ...]  # an image's embeddings, each (B, ...)


def kind_of(sam: Sam) -> str:
    """Return the model's family by its configuration.

    Raises:
        TypeError: None of `KINDS`.
    """
    kind: str = getattr(getattr(sam, "config", None), "model_type", type(sam).__name__)
    if kind not in KINDS:
        raise TypeError(
            f"{type(sam).__name__} is none of SamModel, SamHQModel, Sam2Model, Sam3TrackerModel"
        )
    return kind


def geometry_of(sam: Sam) -> Geometry:
    """Return how an image becomes the square that this model takes."""
    kind, size = kind_of(sam), int(sam.config.prompt_encoder_config.image_size)
    mean, std = (HALF, HALF) if kind == "sam3_tracker" else (MEAN, STD)
    return Geometry(size, kind in {"sam2", "sam3_tracker"}, mean, std)


def image_processor_config(sam: Sam) -> dict[str, Any]:
    """Return the configuration of transformers' image processor for this model, as files have it.

    Not asked of its class, whose module moves from version to version, and which for SAM 2 and 3
    exists only where torchvision is installed.
    """
    geometry, name = geometry_of(sam), "SamImageProcessor"
    side, masks = geometry.image_size, mask_size_of(sam)
    square, mask_square = {"height": side, "width": side}, {"height": masks, "width": masks}
    sizes: dict[str, Any] = {
        "size": {"longest_edge": side},
        "mask_size": {"longest_edge": masks},
        "do_pad": True,
        "pad_size": square,
        "mask_pad_size": mask_square,
    }
    if geometry.stretch:
        # As on the hub: each version of transformers that has the model knows these names.
        name = f"Sam{2 if kind_of(sam) == 'sam2' else 3}ImageProcessorFast"
        sizes = {"size": square, "mask_size": mask_square}
    return {
        "image_processor_type": name,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(level / 255, 6) for level in geometry.mean],
        "image_std": [round(level / 255, 6) for level in geometry.std],
        **sizes,
    }


def mask_size_of(sam: Sam) -> int:
    """Return s, the side of the masks that this model draws, in pixels: four a token."""
    config = sam.config.prompt_encoder_config
    return int(4 * (config.image_size // config.patch_size))


def encode(sam: Sam, pixels: Tensor) -> Maps:
    """Encode images with gradients, unlike `get_image_embeddings`, which silently has none.

    Args:
        sam: a model.
        pixels: (B, 3, S, S), normalized.

    Returns:
        float32 maps, each (B, ...).
    """
    kind = kind_of(sam)
    if kind in {"sam2", "sam3_tracker"}:
        flat = list(sam.get_image_features(pixels, return_dict=True).fpn_hidden_states)
        flat[-1] = flat[-1] + sam.no_memory_embedding  # (h * w, B, C) each
        sizes = sam.backbone_feature_sizes
        # As get_image_embeddings, which leaves out a map beyond the sizes too.
        maps = [m.permute(1, 2, 0).unflatten(2, hw) for m, hw in zip(flat, sizes, strict=False)]
    else:
        with faster_encoder(sam.vision_encoder):
            out = sam.vision_encoder(pixels)
        maps = [out.last_hidden_state]
        if kind == "sam_hq":
            maps.append(out.intermediate_embeddings[0])  # the only one that its decoder reads
    return tuple(m.float() for m in maps)


def embeddings_of(sam: Sam, maps: Sequence[Tensor]) -> Tensor:
    """Return what all of the decoder sees of the images, (B, C, h, w), of `maps`."""
    return maps[0] if kind_of(sam) in {"sam", "sam_hq"} else maps[-1]


def as_arguments(sam: Sam, maps: Maps) -> dict[str, Any]:
    """Return `maps` as the arguments of the model's forward."""
    kind = kind_of(sam)
    if kind == "sam":
        return {"image_embeddings": maps[0]}
    if kind == "sam_hq":
        return {"image_embeddings": maps[0], "intermediate_embeddings": [maps[1]]}
    return {"image_embeddings": list(maps)}


def without_fallback(sam: Sam) -> None:
    """Let a single mask answer for itself, as it is trained, here and in what is saved.

    In evaluation SAM 2 and 3 put one of the other three masks in the place of a single mask that
    wavers. Training asks for those after the first click at most, so that they know too little: a
    tiny SAM 2, trained on the nuclei with one mask a click, lost .05 to .08 of its Dice by it.
    """
    if hasattr(sam.mask_decoder, "dynamic_multimask_via_stability"):
        sam.mask_decoder.dynamic_multimask_via_stability = False
        sam.config.mask_decoder_config.dynamic_multimask_via_stability = False


def encoder_parameters(sam: Sam) -> list[nn.Parameter]:
    """Return all parameters that `encode` uses: with these frozen, embeddings do not change."""
    parts: list[Any] = [sam.vision_encoder]
    if kind_of(sam) in {"sam2", "sam3_tracker"}:
        parts += [sam.mask_decoder.conv_s0, sam.mask_decoder.conv_s1]
    found = [p for part in parts for p in part.parameters()]
    return found + ([sam.no_memory_embedding] if hasattr(sam, "no_memory_embedding") else [])


def positional_encoding(sam: Sam) -> list[nn.Parameter]:
    """Return the positional encoding where it is a parameter; no SAM is meant to train it."""
    return [p for name, p in sam.named_parameters() if name.endswith("positional_embedding")]


def is_frozen(sam: Sam) -> bool:
    """Return whether nothing that `encode` uses is trained."""
    return not any(p.requires_grad for p in encoder_parameters(sam))


@torch.no_grad()
def fingerprint(sam: Sam) -> str:
    """Return a short text that changes with any weight of the encoder."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for parameter in encoder_parameters(sam):
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
