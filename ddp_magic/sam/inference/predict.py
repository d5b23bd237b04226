"""Inference with a trained model: masks of prompted objects, or of all objects of an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ddp_magic.sam.arrays.items import BACKGROUND, FOREGROUND, without_objects
from ddp_magic.sam.arrays.prompt_checks import check_click, check_ends
from ddp_magic.sam.data.batches import collate, prepare
from ddp_magic.sam.models.adapter import kind_of
from ddp_magic.sam.models.model import PromptedSam, with_rounds
from ddp_magic.sam.models.postprocessing import masks_at
from ddp_magic.sam.models.prompts import Prompts
from ddp_magic.sam.process_group import unwrapped
from ddp_magic.sam.reading.files import to_array
from ddp_magic.sam.reading.gray_levels import gray_window, to_rgb


@contextmanager
def evaluating(model: nn.Module) -> Iterator[tuple[PromptedSam, torch.device]]:
    """Set the model to evaluation mode in a `with` block."""
    training, wrapper = model.training, with_rounds(model, 1)
    wrapper.eval()
    try:
        yield wrapper, next(model.parameters()).device
    finally:
        wrapper.train(training)


def scaled_as_trained(model: nn.Module, image: ArrayLike) -> NDArray[np.uint8]:
    """Return an image as (3, H, W) uint8, scaled as the training images (see `train`)."""
    kind_of(unwrapped(model))  # or an error that says which models there are
    image = to_array(image)
    noted = getattr(unwrapped(model).config, "gray_levels", None) or {}
    known = noted.get("dtype") == str(image.dtype) and noted["window"]
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
) -> NDArray[np.bool_]:
    """Predict the masks of prompted objects.

    Args:
        model: a model of the SAM family on any device, a `PromptedSam`, or DDP around one.
        image: (H, W) or (H, W, 3), of any dtype that `SamDataset` accepts; or a PIL image or a
            file. An image with the dtype of the training images is scaled as they were; other
            dtypes except uint8 are scaled by the values of this image.
        points: clicks of one object, (K, 2), rows (y, x) in pixels, or a single click (y, x); or a
            list of such arrays, one per object.
        labels: labels of the clicks, (K,), 1 on the object and 0 off it; or a list, as for
            `points`. Default: 1.
        boxes: a box (4,), (y0, x0, y1, x1) with the last row and column of the object, or boxes
            (N, 4), one per object.
        masks: a rough mask (H, W), or rough masks (N, H, W), one per object.

    Returns:
        A mask (H, W), or masks (N, H, W) if prompts for several objects are given.

    Raises:
        ValueError: There is no prompt; a prompt is invalid or outside the image; or points, labels,
            boxes and masks are for different numbers of objects.
    """
    clicks, several = _each("points", points, 2)
    signs, _ = _each("labels", labels, 1)
    corners, several_boxes = _each("boxes", boxes, 1)
    rough, several_masks = _each("masks", masks, 2)
    rgb = scaled_as_trained(model, image)  # (3, H, W)
    size, n = (rgb.shape[1], rgb.shape[2]), max(map(len, (clicks, corners, rough)))
    without = not corners and not rough and not all(map(len, clicks))
    if several_boxes and not n:  # of a detector that has found nothing
        return np.zeros((0, *size), bool)
    if not n or without or any(len(each) not in {0, n} for each in (clicks, corners, rough)):
        raise ValueError("predict() needs clicks, a box or a mask for each object")
    clicks = clicks or [np.zeros((0, 2))] * n
    signs = signs or [np.full(len(own), FOREGROUND) for own in clicks]
    _check_prompts(clicks, signs, corners, rough, size)
    item = without_objects(rgb) | {
        "masks": torch.zeros(n, *size, dtype=torch.bool),
        "points": torch.tensor(np.concatenate(clicks)[:, ::-1].copy()).float(),
        "labels": torch.tensor(np.concatenate(signs)).long(),
        "counts": torch.tensor([len(own) for own in clicks]),
        "boxes": torch.full((n, 4), torch.nan),
        "keys": torch.arange(n),
    }
    if corners:
        item["boxes"] = torch.tensor(np.stack(corners)[:, [1, 0, 3, 2]]).float()
    if rough:
        item["masks"] = torch.tensor(np.stack(rough)) != 0
    with evaluating(model) as (wrapper, device):
        batch = prepare(collate([item]), wrapper.geometry, device)
        side = wrapper.mask_size
        given = batch["target"].new_full((n, 1, side, side), torch.nan)
        if rough:
            given = F.interpolate(batch["target"], (side, side), mode="area") * 16 - 8
        batch["prompts"] = Prompts(batch["points"], batch["labels"], batch["boxes"], given)
        (logits,) = wrapper.predict_logits(batch)
    result: NDArray[np.bool_] = masks_at(logits, size, wrapper.geometry).cpu().numpy()  # (N, H, W)
    return result if several or several_boxes or several_masks else result[0]


def _check_prompts(
    clicks: list[NDArray[Any]],
    signs: list[NDArray[Any]],
    corners: list[NDArray[Any]],
    rough: list[NDArray[Any]],
    size: tuple[int, int],
) -> None:
    """Check the prompts.

    Raises:
        ValueError: A prompt is invalid.
    """
    if {own.shape[1:] for own in clicks} != {(2,)} or {box.shape for box in corners} - {(4,)}:
        raise ValueError("clicks must be rows (y, x), and boxes rows (y0, x0, y1, x1)")
    for box in corners:
        check_ends(box.tolist(), size)
    ends = [end for box in corners for end in box.reshape(2, 2)]
    places = np.array([*(click for own in clicks for click in own), *ends]).reshape(-1, 2)
    for y, x in places:
        check_click(y, x, size)
    wrong = {
        "labels and clicks have different lengths: pass one label per click": (
            [len(own) for own in signs] != [len(own) for own in clicks]
        ),
        "labels of clicks must be 1 (on the object) or 0 (off it)": (
            not np.isin(np.concatenate(signs), (FOREGROUND, BACKGROUND)).all()
        ),
        "boxes must be (y0, x0, y1, x1) with y0 < y1 and x0 < x1": any(
            y0 >= y1 or x0 >= x1 for y0, x0, y1, x1 in corners
        ),
        f"masks must have the size of the image, {size[0]} x {size[1]} pixels": any(
            each.shape != size for each in rough
        ),
        "clicks and boxes must be in pixels, not in fractions of the image": (
            places.max(initial=0) <= 1 < max(size) and (places % 1).any()
        ),
        "each mask must have one object, and be boolean, 0/1 or 0/255: pass labels == 3 from a "
        "label map, probabilities > 0.5": any(
            not each.any() or ((each != 0) & (each != each.max())).any() for each in rough
        ),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(message)


def _each(name: str, given: Any, dimensions: int) -> tuple[list[NDArray[Any]], bool]:  # noqa: ANN401 -- arrays, lists, lists of arrays
    """Return one array of `dimensions` per object, and whether `given` was for several objects.

    Raises:
        ValueError: It does not consist of numbers.
    """
    if given is None:
        return [], False
    try:
        if np.shape(given)[:1] == (0,) and np.ndim(given) == dimensions + 1:
            return [], True
        given = [given] if name == "labels" and np.ndim(given) == 0 else given
        if len(given) > 0 and np.ndim(given[0]) == dimensions:
            return [np.asarray(each, dtype=np.float64) for each in given], True
        one = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be an array of numbers, or a list of one per object: {error}"
        ) from error
    if dimensions == 2 and one.ndim == 1:  # no click, or a single click (y, x)
        one = one[None] if len(one) else np.zeros((0, 2))
    return [one], False
