"""From the output of a model to masks at the original size of the image."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_magic.sam.data.batches import Geometry


def best_mask(logits: Tensor, iou: Tensor) -> Tensor:
    """Return the mask (M, 1, s, s) with the highest IoU (M, C) of masks (M, C, s, s)."""
    return logits[torch.arange(len(iou), device=iou.device), iou.argmax(1)][:, None]


class Resizing(NamedTuple):
    """Resizing to the original size as two matrix products, of which parts can be computed.

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
        inside, ends = (logits > 0).any(0), []  # (s, s)
        for axis, weights in ((1, self.rows), (0, self.columns)):
            hit = weights @ inside.any(axis).to(weights) > 0
            hit = hit if mask is None else hit | mask.any(axis)
            first, last = hit.nonzero()[[0, -1], 0].tolist() if hit.any() else (0, -1)
            ends.append(slice(first, last + 1))
        return ends[0], ends[1]

    def part(self, logits: Tensor, window: tuple[slice, slice]) -> Tensor:
        """Return masks (k, s, s) at the original size in a window, as logits (k, h, w)."""
        found: Tensor = self.rows[window[0]] @ logits.float() @ self.columns[window[1]].T
        return found


def resizing(side: int, size: tuple[int, int], geometry: Geometry, like: Tensor) -> Resizing:
    """Return how masks of `side` x `side` pixels are resized to `size`, on the device of `like`."""
    one = torch.eye(side, device=like.device)[None]  # (1, s, s)
    square = F.interpolate(one, geometry.image_size, mode="linear")
    rows, columns = (
        F.interpolate(square[..., :inside], length, mode="linear")[0].T.contiguous()
        for inside, length in zip(geometry.resized(size), size, strict=True)
    )
    return Resizing(rows, columns)


def masks_at(logits: Tensor, size: tuple[int, int], geometry: Geometry) -> Tensor:
    """Return masks (m, H, W), bool, for the output of the model, (m, 1, s, s)."""
    resize, whole = resizing(logits.shape[-1], size, geometry, logits), (slice(None), slice(None))
    masks = torch.zeros(len(logits), *size, dtype=torch.bool, device=logits.device)
    for mask, each in zip(masks, logits, strict=True):
        torch.gt(resize.part(each, whole)[0], 0, out=mask)
    return masks
