"""The differences between the models of the SAM family.

SamModel, SamHQModel, Sam2Model and Sam3TrackerModel take prompts in the same way. They differ in
how an image is resized, and in the embeddings that the encoder passes to the decoder. Here the
embeddings are always a tuple of tensors whose first dimension is the image.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddp_magic.sam.data.batches import MEAN, STD, Geometry

HALF = (127.5, 127.5, 127.5)  # mean and standard deviation of SAM 3, in gray levels
KINDS = ("sam", "sam_hq", "sam2", "sam3_tracker")

Sam = Any  # a model of the family; the classes have no common base with their submodules
Maps = tuple[Tensor, ...]  # embeddings of images, each (B, ...)


def kind_of(sam: Sam) -> str:
    """Return the family of a model, one of `KINDS`.

    Raises:
        TypeError: The model is of another family, or compiled as a whole.
    """
    if hasattr(sam, "_orig_mod"):
        raise TypeError(
            "torch.compile cannot compile the model as a whole, since its parts are called one by "
            "one: compile those, as in sam.vision_encoder.compile()"
        )
    kind: str = getattr(getattr(sam, "config", None), "model_type", type(sam).__name__)
    if kind not in KINDS:
        raise TypeError(
            f"unsupported model {type(sam).__name__}: use a SamModel, SamHQModel, Sam2Model or "
            "Sam3TrackerModel"
        )
    return kind


def geometry_of(sam: Sam) -> Geometry:
    """Return how images are resized and normalized for this model."""
    kind, size = kind_of(sam), int(sam.config.prompt_encoder_config.image_size)
    mean, std = (HALF, HALF) if kind == "sam3_tracker" else (MEAN, STD)
    return Geometry(size, kind in {"sam2", "sam3_tracker"}, mean, std)


def image_processor_config(sam: Sam) -> dict[str, Any]:
    """Return what transformers needs to know of the image processor: what is not its default.

    It is not made by the class of the processor, whose module changes between versions, and which
    for SAM 2 and SAM 3 needs torchvision.
    """
    geometry, masks = geometry_of(sam), mask_size_of(sam)
    square, mask_square = (dict.fromkeys(("height", "width"), n) for n in (geometry[0], masks))
    mean, std = ([round(level / 255, 6) for level in each] for each in geometry[2:])
    config = {"image_mean": mean, "image_std": std}
    if geometry.stretch:
        # The names on the Hugging Face Hub, which all versions of transformers support.
        name = f"Sam{2 if kind_of(sam) == 'sam2' else 3}ImageProcessorFast"
        return config | {"image_processor_type": name, "size": square, "mask_size": mask_square}
    sizes = {"size": {"longest_edge": geometry[0]}, "mask_size": {"longest_edge": masks}}
    padded = {"pad_size": square, "mask_pad_size": mask_square}
    return config | {"image_processor_type": "SamImageProcessor"} | sizes | padded


def mask_size_of(sam: Sam) -> int:
    """Return s, the side of the predicted masks in pixels: four per patch."""
    config = sam.config.prompt_encoder_config
    return int(4 * (config.image_size // config.patch_size))


def encode(sam: Sam, pixels: Tensor) -> Maps:
    """Encode images as `get_image_embeddings` of transformers, but with gradients.

    Args:
        sam: a model.
        pixels: normalized images, (B, 3, S, S).

    Returns:
        Embeddings, float32, each (B, ...).
    """
    # Its decorator, torch.no_grad, is taken off.
    found = inspect.unwrap(type(sam).get_image_embeddings)(sam, pixels)
    maps = [found] if isinstance(found, Tensor) else list(found)
    if kind_of(sam) == "sam_hq":
        maps[1] = maps[1][0]  # the decoder uses only the first one
    return tuple(m.float() for m in maps)


def embeddings_of(sam: Sam, maps: Sequence[Tensor]) -> Tensor:
    """Return the main image embeddings (B, C, h, w) of `maps`."""
    return maps[0] if kind_of(sam) in {"sam", "sam_hq"} else maps[-1]


def as_arguments(sam: Sam, maps: Maps) -> dict[str, Any]:
    """Return `maps` as keyword arguments for the forward pass of the model."""
    kind = kind_of(sam)
    if kind == "sam":
        return {"image_embeddings": maps[0]}
    if kind == "sam_hq":
        return {"image_embeddings": maps[0], "intermediate_embeddings": [maps[1]]}
    return {"image_embeddings": list(maps)}


def without_fallback(sam: Sam) -> None:
    """Always return the single mask that was trained, in this model and in its checkpoints.

    In evaluation mode, SAM 2 and SAM 3 replace an unstable single mask by one of the three other
    masks. These are trained after the first click only, or not at all: a tiny SAM 2, trained on the
    nuclei with one mask per click, lost .05 to .08 of its Dice.
    """
    if hasattr(sam.mask_decoder, "dynamic_multimask_via_stability"):
        sam.mask_decoder.dynamic_multimask_via_stability = False
        sam.config.mask_decoder_config.dynamic_multimask_via_stability = False


def encoder_parameters(sam: Sam) -> list[nn.Parameter]:
    """Return all parameters that `encode` uses. If they are frozen, embeddings do not change."""
    parts: list[Any] = [sam.vision_encoder]
    if kind_of(sam) in {"sam2", "sam3_tracker"}:
        parts += [sam.mask_decoder.conv_s0, sam.mask_decoder.conv_s1]
    found = [p for part in parts for p in part.parameters()]
    return found + ([sam.no_memory_embedding] if hasattr(sam, "no_memory_embedding") else [])


def freeze_positions(sam: Sam) -> None:
    """Freeze the positional encoding, which some of the models have as a parameter."""
    for name, parameter in sam.named_parameters():
        if name.endswith("positional_embedding"):
            parameter.requires_grad_(False)


def is_frozen(sam: Sam) -> bool:
    """Return whether all parameters that `encode` uses are frozen."""
    return not any(p.requires_grad for p in encoder_parameters(sam))


@torch.no_grad()
def fingerprint(sam: Sam) -> str:
    """Return a hash of the weights of the encoder."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for parameter in encoder_parameters(sam):
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
