"""The objects of a mask, which is a label map or a stack with one mask per object."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def any_object(mask: NDArray[Any]) -> NDArray[Any]:
    """Return the union (H, W) of all objects of a label map or a stack of masks."""
    return np.asarray(mask.any(0) if mask.ndim == 3 else mask != 0)


def pixel(coordinate: float) -> int:
    """Return the pixel index of a coordinate; integers are pixel centers."""
    return int(np.floor(coordinate + 0.5))


def object_at(mask: NDArray[Any], y: float, x: float) -> int:
    """Return the label of the object at a click, the smallest one in a stack; 0: background."""
    if mask.ndim == 2:
        return int(mask[pixel(y), pixel(x)])
    under = np.flatnonzero(mask[:, pixel(y), pixel(x)])
    sizes = [np.count_nonzero(mask[n]) for n in under]
    return int(under[np.argmin(sizes)]) + 1 if len(under) else 0


def object_mask(mask: NDArray[Any], label: int) -> NDArray[np.bool_]:
    """Return the mask (H, W) of an object; label 1 is the first mask of a stack."""
    found: NDArray[np.bool_] = mask == label if mask.ndim == 2 else mask[label - 1] != 0
    return found


def object_masks(mask: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the masks (N, H, W) of the objects with labels (N,).

    Each pixel of a label map is read once, not once per object.
    """
    if mask.ndim == 3:
        stack: NDArray[np.bool_] = mask[labels - 1] != 0
        return stack
    masks = np.zeros((len(labels), *mask.shape), dtype=bool)
    if len(labels):
        at = np.flatnonzero(mask)  # pixels of any object
        own, order = mask.ravel()[at].astype(np.int64), np.argsort(labels)
        row = order[np.searchsorted(labels, own, sorter=order).clip(max=len(labels) - 1)]
        requested = labels[row] == own
        masks.reshape(len(labels), -1)[row[requested], at[requested]] = True
    return masks


def object_labels(mask: NDArray[Any]) -> NDArray[Any]:
    """Return the labels (N,) of all objects."""
    if mask.ndim == 3:
        return np.array([n + 1 for n, each in enumerate(mask) if each.any()], dtype=np.int64)
    found = np.unique(mask).astype(np.int64)
    return np.asarray(found[found != 0])


def box_of(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the box around a mask, (x0, y0, x1, y1), in pixel centers."""
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([x[0], y[0], x[-1], y[-1]], dtype=np.float64)


def box_iou(box: NDArray[Any], boxes: NDArray[Any]) -> NDArray[Any]:
    """Return the intersection over union of a box (4,) with boxes (N, 4)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + 1
    both = sides.clip(0).prod(1)
    areas = [(b[..., 2:] - b[..., :2] + 1).prod(-1) for b in (box, boxes)]
    iou: NDArray[Any] = both / (areas[0] + areas[1] - both)
    return iou
