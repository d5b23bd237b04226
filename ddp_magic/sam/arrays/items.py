"""An item of a data set: one image with its objects and their prompts.

An item is a dict of tensors, for an image of H x W pixels with N objects and P clicks:

    image   (3, H, W) uint8, at its original size
    masks   (N, H, W) bool
    points  (P, 2) float32, clicks (x, y) in pixels, ordered by object
    labels  (P,), 1 on the object and 0 off it
    counts  (N,), the number of clicks of each object
    boxes   (N, 4) float32, (x0, y0, x1, y1), NaN without a box
    keys    (N,), a number for each object that is unique in the data set
    ignored (H, W) bool, pixels that count neither in the loss nor in scores; only if there are any
    instances (H, W) int32, the label map of all objects, whether prompted or not; 0 is background,
            -1 is ignored. Only where it is needed, since it takes time: in items of `Sampled`
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_magic.sam.arrays.masks import pixel

Item = dict[str, Any]

LAYOUT = {  # the axes of each entry, and what its dtype is called; see above
    "image": ("3HW", "uint8"),
    "masks": ("NHW", "bool"),
    "points": ("P2", "float"),
    "labels": ("P", "int"),
    "counts": ("N", "int"),
    "boxes": ("N4", "float"),
    "keys": ("N", "int"),
    "ignored": ("HW", "bool"),
    "instances": ("HW", "int"),
}

FOREGROUND, BACKGROUND, PAD = 1, 0, -10  # labels of clicks in SAM; PAD: no click, in batches


def check_item(item: object, name: str) -> None:
    """Check the layout of an item that another data set or a transform has made.

    Raises:
        TypeError: It is not a dict.
        ValueError: An entry is missing, or has another shape or dtype.
    """
    if not isinstance(item, Mapping):
        raise TypeError(f"{name} must be a dict, as those of SamDataset, not {type(item).__name__}")
    optional = {"ignored", "instances"} | ({"image"} if "embeddings" in item else set())
    sides: dict[str, int] = {}
    for entry, (axes, kind) in LAYOUT.items():
        if entry in optional - item.keys():
            continue
        given: Any = item.get(entry)
        is_right = (
            isinstance(given, Tensor) and given.ndim == len(axes) and kind in str(given.dtype)
        )
        for axis, side in zip(axes, given.shape if is_right else (), strict=False):
            is_right &= sides.setdefault(axis, int(axis) if axis.isdigit() else side) == side
        if not is_right:
            known = ", ".join(f"{axis} {side}" for axis, side in sides.items() if axis in "HWNP")
            found = f"{getattr(given, 'dtype', type(given).__name__)} {(*np.shape(given),)}"
            raise ValueError(
                f"{name}: {entry} must be a tensor ({', '.join(axes)}) {kind}, but is {found}"
                + (f"; so far, {known}" if known else "")
                + ("; scale an image to gray levels 0..255" if entry == "image" else "")
            )


def prompts_on(item: Item) -> float:
    """Return the share of clicks with label 1, and of boxes, that touch their object; or 1."""
    masks, found = item["masks"], []
    own = torch.arange(len(masks)).repeat_interleave(item["counts"])  # (P,)
    given = item["labels"] == FOREGROUND
    for number, (x, y) in zip(own[given].tolist(), item["points"][given].tolist(), strict=True):
        found.append(bool(_inside(masks[number], y, x, y, x).any()))
    for mask, (x0, y0, x1, y1) in zip(masks, item["boxes"].tolist(), strict=True):
        if not math.isnan(x0):
            found.append(bool(_inside(mask, y0, x0, y1, x1).any()))
    return sum(found) / len(found) if found else 1.0


def _inside(mask: Tensor, y0: float, x0: float, y1: float, x1: float) -> Tensor:
    """Return the part of a mask (H, W) in a box, which may be outside the mask."""
    rows, columns = ((max(0, pixel(a)), max(0, pixel(b) + 1)) for a, b in ((y0, y1), (x0, x1)))
    return mask[slice(*rows), slice(*columns)]


def no_prompts(objects: int) -> Item:
    """Return the prompts of an item whose objects have none."""
    return {
        "points": torch.zeros(0, 2),
        "labels": torch.zeros(0, dtype=torch.long),
        "counts": torch.zeros(objects, dtype=torch.long),
        "boxes": torch.full((objects, 4), torch.nan),
    }


def object_keys(index: int, objects: int) -> Tensor:
    """Return the keys (N,) of the objects of the image with this index."""
    number = torch.arange(objects)
    # The prompts of an epoch depend on them: those of the first 4096 stay what they were.
    return index * 4096 + number + (number // 4096 << 40)


def pick_objects(item: Item, chosen: Tensor) -> Item:
    """Return an item with only the objects `chosen`, (n,) indices."""
    owner = torch.arange(len(item["counts"])).repeat_interleave(item["counts"])  # (P,)
    clicks = torch.isin(owner, chosen)
    names = {"masks", "keys", "counts", "boxes"} & item.keys()
    some: Item = {name: item[name][chosen] for name in names}
    return {**item, **some, "points": item["points"][clicks], "labels": item["labels"][clicks]}


def without_objects(image: NDArray[np.uint8]) -> Item:
    """Return an image (3, H, W) as an item without objects."""
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image)),
        "masks": torch.zeros(0, *image.shape[1:], dtype=torch.bool),
        "keys": torch.zeros(0, dtype=torch.long),
        **no_prompts(0),
    }
