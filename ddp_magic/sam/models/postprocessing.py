"""From the output of a model to masks at the original size of the image."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_magic.sam.data.batches import Geometry

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


class Resizing(NamedTuple):
    """`at_original_size` as two matrix products, of which parts can be computed.

    Bilinear interpolation is linear, and separate for each axis. An object of 40 pixels in an image
    of 2048 takes a thousandth of the memory and time of the whole image.
    """

    rows: Tensor  # (H, s), the weights of the rows of the output of the model in each row
    columns: Tensor  # (W, s)

    def window(self, logits: Tensor, mask: Tensor | None = None) -> tuple[slice, slice]:
        """Return the smallest window with all pixels of masks.

        Args:
            logits: masks of the model, (k, s, s).
            mask: another mask, (H, W).

        Returns:
            Rows and columns; empty if there is no pixel.
        """
        inside = (logits > 0).any(0)  # (s, s)
        hits = [
            weights @ inside.any(axis).to(weights) > 0
            for axis, weights in ((1, self.rows), (0, self.columns))
        ]
        if mask is not None:
            hits = [hit | mask.any(axis) for axis, hit in zip((1, 0), hits, strict=True)]
        ends = [hit.nonzero()[[0, -1], 0].tolist() if hit.any() else (0, -1) for hit in hits]
        y, x = (slice(first, last + 1) for first, last in ends)
        return y, x

    def part(self, logits: Tensor, window: tuple[slice, slice]) -> Tensor:
        """Return masks (k, s, s) at the original size in a window, as logits (k, h, w)."""
        y, x = window
        found: Tensor = self.rows[y] @ logits.float() @ self.columns[x].T
        return found


def resizing(
    side: int, size: tuple[int, int], geometry: Geometry, device: torch.device
) -> Resizing:
    """Return how masks of `side` x `side` pixels are resized to `size`."""
    one = torch.eye(side, device=device)[None]  # (1, s, s)
    square = F.interpolate(one, geometry.image_size, mode="linear")
    rows, columns = (
        F.interpolate(square[..., :inside], length, mode="linear")[0].T.contiguous()
        for inside, length in zip(geometry.resized(size), size, strict=True)
    )
    return Resizing(rows, columns)


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
