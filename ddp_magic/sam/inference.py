"""A trained model at work: what is prompted for in a picture, or everything in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ddp_magic.sam.arrays import BACKGROUND, FOREGROUND, check_click, gray_window, to_rgb
from ddp_magic.sam.batches import collate, prepare
from ddp_magic.sam.data import without_objects
from ddp_magic.sam.model import PromptedSam, masks_at
from ddp_magic.sam.process_group import unwrapped
from ddp_magic.sam.prompts import Prompts


@contextmanager
def _evaluating(
    model: nn.Module, *, multimask: bool | None
) -> Iterator[tuple[PromptedSam, torch.device]]:
    """Put the model into evaluation mode for a while."""
    training, wrapper = model.training, PromptedSam(model, multimask=multimask)
    wrapper.eval()
    try:
        yield wrapper, next(model.parameters()).device
    finally:
        wrapper.train(training)


def _as_trained(model: nn.Module, image: ArrayLike) -> NDArray[np.uint8]:
    """Return an image as SAM takes it, (3, H, W), its gray levels as `train` noted them."""
    noted = getattr(unwrapped(model).config, "gray_levels", None) or {}
    known = noted.get("dtype") == str(np.asarray(image).dtype) and noted["window"]
    return to_rgb(image, gray_window([image], tuple(noted["window"]) if known else None))


@torch.no_grad()
def predict(
    model: nn.Module,
    image: ArrayLike,
    points: ArrayLike | Sequence[ArrayLike] | None = None,
    labels: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    boxes: ArrayLike | None = None,
    masks: ArrayLike | None = None,
    multimask: bool | None = None,
) -> NDArray[np.bool_]:
    """Draw the mask of what is asked for.

    Args:
        model: any model of the SAM family, on any device; or DDP around one.
        image: (H, W) or (H, W, 3), of any type that `SamDataset` takes. The gray levels of the type
            that the model was trained on are taken as there, those of another one, but for uint8,
            are judged by this one image.
        points: clicks of one object, (K, 2), rows (y, x) in pixels, as in `SamDataset`'s
            coordinates, or one click (y, x); or a list of such arrays, one an object.
        labels: of the clicks, (K,), 1 on the object (default), 0 off it; or a list as `points`.
        boxes: (4,), (y0, x0, y1, x1), or (N, 4), one an object.
        masks: rough masks, (H, W) bool, or (N, H, W), one an object.
        multimask: as in `train`; None: as the model was trained.

    Returns:
        A mask (H, W), or masks (N, H, W) if prompts were given for several.

    Raises:
        ValueError: A prompt lies outside the image or makes no sense, or there is none, or their
            numbers differ.
    """
    clicks, several = _each(points, 2)
    signs, _ = _each(labels, 1)
    frames, several_boxes = _each(boxes, 1)
    rough, several_masks = _each(masks, 2)
    rgb = _as_trained(model, image)  # (3, H, W)
    (height, width), n = rgb.shape[1:], max(map(len, (clicks, frames, rough)))
    if n == 0 or any(len(each) not in {0, n} for each in (clicks, frames, rough)):
        raise ValueError("predict() needs clicks, a box or a mask for each object")
    clicks = clicks or [np.zeros((0, 2))] * n
    signs = signs or [np.full(len(own), FOREGROUND) for own in clicks]
    _check_prompts(clicks, signs, frames, rough, (height, width))
    item = without_objects(rgb) | {
        "masks": torch.zeros(n, height, width, dtype=torch.bool),
        "points": torch.tensor(np.concatenate(clicks)[:, ::-1].copy()).float(),
        "labels": torch.tensor(np.concatenate(signs)).long(),
        "counts": torch.tensor([len(own) for own in clicks]),
        "boxes": torch.full((n, 4), torch.nan),
        "keys": torch.arange(n),
    }
    if frames:
        item["boxes"] = torch.tensor(np.stack(frames)[:, [1, 0, 3, 2]]).float()
    if rough:
        item["masks"] = torch.tensor(np.stack(rough)) != 0
    with _evaluating(model, multimask=multimask) as (wrapper, device):
        batch = prepare(collate([item]), wrapper.geometry, device)
        size = wrapper.mask_size
        given = batch["target"].new_full((n, 1, size, size), torch.nan)
        if rough:
            given = F.interpolate(batch["target"], (size, size), mode="area") * 16 - 8
        batch["prompts"] = Prompts(batch["points"], batch["labels"], batch["boxes"], given)
        (logits,) = wrapper.draw(batch)
    drawn = masks_at(logits, (height, width), wrapper.geometry)
    result: NDArray[np.bool_] = drawn.cpu().numpy()  # (N, H, W)
    return result if several or several_boxes or several_masks else result[0]


def _check_prompts(
    clicks: list[NDArray[Any]],
    signs: list[NDArray[Any]],
    frames: list[NDArray[Any]],
    rough: list[NDArray[Any]],
    size: tuple[int, int],
) -> None:
    """Refuse what a model would take without a word, or torch with one that tells nothing."""
    if any(own.shape[1:] != (2,) for own in clicks) or any(box.shape != (4,) for box in frames):
        raise ValueError("clicks are rows (y, x), and a box is (y0, x0, y1, x1)")
    corners = [corner for box in frames for corner in box.reshape(2, 2)]
    for y, x in [*(click for own in clicks for click in own), *corners]:
        check_click(y, x, size)
    if [len(own) for own in signs] != [len(own) for own in clicks]:
        raise ValueError("labels are not as many as clicks")
    if not np.isin(np.concatenate(signs), (FOREGROUND, BACKGROUND)).all():
        raise ValueError("a click's label is 1 on the object, 0 off it")
    if any(y0 >= y1 or x0 >= x1 for y0, x0, y1, x1 in frames):
        raise ValueError("a box is (y0, x0, y1, x1), and y0 < y1, x0 < x1")
    if any(each.shape != size for each in rough):
        raise ValueError(f"a mask is not of the image's size, {size[0]} x {size[1]} pixels")


def _each(given: Any, dimensions: int) -> tuple[list[NDArray[Any]], bool]:  # noqa: ANN401 -- arrays, lists, lists of arrays
    """Return what was given for each object, arrays of `dimensions`, and whether it was a list."""
    if given is None:
        return [], False
    if len(given) > 0 and np.ndim(given[0]) == dimensions:
        return [np.asarray(each, dtype=np.float64) for each in given], True
    one = np.asarray(given, dtype=np.float64)
    if dimensions == 2 and one.ndim == 1:  # no click, or one without brackets around it
        one = one[None] if len(one) else np.zeros((0, 2))
    return [one], False


class Found(NamedTuple):
    """A mask that may be an object."""

    score: float
    top: int  # of its piece of the picture, px
    left: int
    mask: NDArray[np.bool_]  # (h, w)


@torch.no_grad()
def segment(  # noqa: PLR0913 -- each is a choice with a default
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
    """Find every object of a picture: click on a grid of points, keep the masks that are good.

    Args:
        model: any model of the SAM family, on any device; or DDP around one.
        image: (H, W) or (H, W, 3), of any size; its type as for `predict`.
        tile: side of the pieces that the picture is looked at in, in pixels: about the size of the
            images that the model was trained on. They overlap by half, so that an object is
            found whole if it is smaller than a quarter of a tile. Default: one piece.
        points_per_side: clicks along a tile's side.
        min_iou: least guess of the mask's IoU.
        min_stability: least IoU of the masks at logits 1 and -1.
        min_area: of an object, in pixels.
        max_share: of a tile that one object may cover.
        batch_size: clicks at a time.
        multimask: as in `train`; None: as the model was trained.

    Returns:
        A label map (H, W), 0 = background; the best masks come first, and of two that overlap by
        more than half of one, the better is kept.

    Source:
        Kirillov et al., "Segment Anything", ICCV 2023, appendix B; tiles with a margin as in
        Archit et al., "Segment Anything for Microscopy", Nature Methods 2025.
    """
    rgb = _as_trained(model, image)  # (3, H, W)
    height, width = rgb.shape[1:]
    side = tile or max(height, width)
    core = max(1, side // 2) if tile else side
    margin = (side - core) // 2
    found: list[Found] = []
    with _evaluating(model, multimask=multimask) as (wrapper, device):
        for top in range(0, height, core):
            for left in range(0, width, core):
                # At the picture's edge too a piece is a whole tile: the size the model knows.
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
                    drawn = masks_at(logits[rows, masks, None], size, wrapper.geometry)
                    for mask, score, (x, y) in zip(
                        drawn.cpu().numpy(),
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
    """Click on a grid in the inner square (top, left, side) of a piece of a picture.

    Yields:
        Logits (m, C, s, s), guesses of IoU (m, C), and the clicks (m, 2), (x, y) in the piece.
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
    """Return the IoU of each mask (m, C, s, s) cut at logits 1 and -1, (m, C)."""
    inner, outer = (logits > 1).flatten(2).sum(2), (logits > -1).flatten(2).sum(2)
    return inner / outer.clamp(min=1)


def _is_cut(mask: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> bool:
    """Return whether a mask reaches the edge of its piece where the picture goes on."""
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    return bool(
        (top > 0 and mask[0].any())
        or (left > 0 and mask[:, 0].any())
        or (bottom < height and mask[-1].any())
        or (right < width and mask[:, -1].any())
    )


def _paint(found: list[Found], size: tuple[int, int], min_area: int) -> NDArray[np.int32]:
    """Lay masks into one label map, the best first; what is mostly taken already is left out."""
    labels = np.zeros(size, dtype=np.int32)
    for each in sorted(found, key=lambda one: -one.score):
        h, w = each.mask.shape
        place = labels[each.top : each.top + h, each.left : each.left + w]
        free = each.mask & (place == 0)
        if np.count_nonzero(free) >= max(min_area, np.count_nonzero(each.mask) / 2):
            place[free] = labels.max() + 1
    return labels
