"""From the output of a model to masks at the original size of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_magic.sam.batches import Geometry

MEMORY_BYTES = 2**31  # for the objects that are processed at once outside of training


def best_mask(logits: Tensor, iou: Tensor) -> Tensor:
    """Return the mask (M, 1, s, s) with the highest IoU (M, C) of masks (M, C, s, s)."""
    return logits[torch.arange(len(iou), device=iou.device), iou.argmax(1)][:, None]


def at_original_size(logits: Tensor, size: tuple[int, int], geometry: Geometry) -> Tensor:
    """Undo the resizing and padding.

    Args:
        logits: output of the model, (m, 1, s, s).
        size: height and width of the original image, in pixels.
        geometry: how the image was resized.

    Returns:
        Logits (m, H, W).
    """
    height, width = geometry.resized(size)
    side = geometry.image_size
    square = F.interpolate(logits.float(), (side, side), mode="bilinear", align_corners=False)
    crop = square[..., :height, :width]
    return F.interpolate(crop, size, mode="bilinear", align_corners=False)[:, 0]


def bytes_per_mask(size: tuple[int, int]) -> int:
    """Return the memory in bytes that `at_original_size` and a score need for one object."""
    return 16 * size[0] * size[1]


def masks_at(logits: Tensor, size: tuple[int, int], geometry: Geometry) -> Tensor:
    """Return masks (m, H, W), bool: the result of `at_original_size`, computed in chunks."""
    pieces = in_pieces(len(logits), bytes_per_mask(size))
    return torch.cat([at_original_size(logits[rows], size, geometry) > 0 for rows in pieces])


def in_pieces(objects: int, bytes_per_object: int, memory_bytes: int = MEMORY_BYTES) -> list[slice]:
    """Split objects into slices that fit into `memory_bytes`."""
    step = max(1, memory_bytes // bytes_per_object)
    return [slice(start, start + step) for start in range(0, max(objects, 1), step)]
