"""Segmentation of all objects of an image, without prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ddp_magic.sam.batches import collate, prepare
from ddp_magic.sam.inference import evaluating, scaled_as_trained
from ddp_magic.sam.items import FOREGROUND, without_objects
from ddp_magic.sam.model import PromptedSam
from ddp_magic.sam.postprocessing import masks_at
from ddp_magic.sam.prompts import Prompts


class Found(NamedTuple):
    """A candidate mask."""

    score: float
    top: int  # of the tile in the image, px
    left: int
    mask: NDArray[np.bool_]  # (h, w)


@torch.no_grad()
def segment(  # noqa: PLR0913 -- options with defaults
    model: nn.Module,
    image: ArrayLike,
    *,
    tile: int | None = None,
    points_per_side: int = 16,
    min_iou: float = 0.7,
    min_stability: float = 0.8,
    min_area: int = 16,
    max_share: float = 0.9,
    batch_size: int = 64,
    multimask: bool | None = None,
) -> NDArray[np.int32]:
    """Segment all objects of an image: click on a grid of points, and keep the good masks.

    Args:
        model: a model of the SAM family on any device, or DDP around one.
        image: (H, W) or (H, W, 3), of any size; for the dtype, see `predict`.
        tile: side of the tiles that the image is split into, in pixels: about the size of the
            training images. Tiles overlap by half, so that an object smaller than a quarter of a
            tile is found as a whole. None: one tile.
        points_per_side: number of clicks along the side of a tile.
        min_iou: minimum IoU that the model predicts for a mask.
        min_stability: minimum IoU between the mask thresholded at logit 1 and at logit -1.
        min_area: minimum area of an object, in pixels.
        max_share: maximum fraction of a tile that an object covers.
        batch_size: number of clicks per batch.
        multimask: whether to predict three masks per click. None: as the model was trained.

    Returns:
        A label map (H, W), where 0 is background. Labels start at 1 with the best mask. If two
        masks overlap by more than half of one of them, only the better one is kept.

    Source:
        Kirillov et al., "Segment Anything", ICCV 2023, appendix B; tiles with a margin as in
        Archit et al., "Segment Anything for Microscopy", Nature Methods 2025.
    """
    rgb = scaled_as_trained(model, image)  # (3, H, W)
    height, width = rgb.shape[1:]
    side = tile or max(height, width)
    core = max(1, side // 2) if tile else side
    margin = (side - core) // 2
    found: list[Found] = []
    with evaluating(model, multimask=multimask) as (wrapper, device):
        for top in range(0, height, core):
            for left in range(0, width, core):
                # At the border, too, a piece has the size of a tile, as the training images.
                y0 = max(0, min(top - margin, height - side))
                x0 = max(0, min(left - margin, width - side))
                piece = rgb[:, y0 : y0 + side, x0 : x0 + side]
                inner = (top - y0, left - x0, core)
                steps = max(1, points_per_side // (2 if tile else 1))
                for logits, iou, clicks in _click_grid(
                    wrapper, piece, inner, steps, batch_size, device
                ):
                    good = (iou >= min_iou) & (_stability(logits) >= min_stability)  # (m, C)
                    rows, masks = torch.where(good)
                    size = piece.shape[1:]
                    predicted = masks_at(logits[rows, masks, None], size, wrapper.geometry)
                    for mask, score, (x, y) in zip(
                        predicted.cpu().numpy(),
                        iou[good].tolist(),
                        clicks[rows.cpu()].tolist(),
                        strict=True,
                    ):
                        area = np.count_nonzero(mask)
                        whole = not _is_cut(mask, y0, x0, height, width)
                        if (
                            whole
                            and mask[int(y), int(x)]
                            and min_area <= area <= max_share * mask.size
                        ):
                            found.append(Found(score, y0, x0, mask))
    return _paint(found, (height, width), min_area)


def _click_grid(
    wrapper: PromptedSam,
    piece: NDArray[np.uint8],
    inner: tuple[int, int, int],
    steps: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Click on a grid in the inner square (top, left, side) of one tile.

    Yields:
        Logits (m, C, s, s), predicted IoU (m, C), and clicks (m, 2), (x, y) in the tile.
    """
    top, left, side = inner
    height, width = piece.shape[1:]
    at = (torch.arange(steps) + 0.5) / steps * side
    y, x = torch.meshgrid(top + at, left + at, indexing="ij")
    clicks = torch.stack([x, y], -1).view(-1, 2)
    clicks = clicks[(clicks[:, 0] < width) & (clicks[:, 1] < height)].floor()
    item = without_objects(piece)
    maps = wrapper.encode(prepare(collate([item]), wrapper.geometry, device)["pixel_values"])
    new_h, new_w = wrapper.geometry.resized((height, width))
    scale = torch.tensor([new_w / width, new_h / height])
    size = wrapper.mask_size
    for start in range(0, len(clicks), batch_size):
        some = clicks[start : start + batch_size]
        m = len(some)
        prompts = Prompts(
            (some * scale)[:, None].to(device),
            torch.full((m, 1), FOREGROUND, device=device),
            torch.full((m, 4), torch.nan, device=device),
            torch.full((m, 1, size, size), torch.nan, device=device),
        )
        index = torch.zeros(m, dtype=torch.long, device=device)
        ((logits, iou),) = wrapper({"embeddings": maps, "image_index": index, "prompts": prompts})
        yield logits, iou, some


def _stability(logits: Tensor) -> Tensor:
    """Return the IoU of the masks (m, C, s, s) thresholded at logits 1 and -1, (m, C)."""
    inner, outer = (logits > 1).flatten(2).sum(2), (logits > -1).flatten(2).sum(2)
    return inner / outer.clamp(min=1)


def _is_cut(mask: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> bool:
    """Return whether a mask touches a side of its tile that is not a border of the image."""
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    return bool(
        (top > 0 and mask[0].any())
        or (left > 0 and mask[:, 0].any())
        or (bottom < height and mask[-1].any())
        or (right < width and mask[:, -1].any())
    )


def _paint(found: list[Found], size: tuple[int, int], min_area: int) -> NDArray[np.int32]:
    """Combine masks into one label map, the best first; skip masks that are mostly covered."""
    labels = np.zeros(size, dtype=np.int32)
    for each in sorted(found, key=lambda one: -one.score):
        h, w = each.mask.shape
        place = labels[each.top : each.top + h, each.left : each.left + w]
        free = each.mask & (place == 0)
        if np.count_nonzero(free) >= max(min_area, np.count_nonzero(each.mask) / 2):
            place[free] = labels.max() + 1
    return labels
