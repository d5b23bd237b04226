"""The objects of a mask, which is a label map or a stack with one mask per object."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Encoded:
    """A stack of masks (N, H, W) in the run-length encoding of COCO, decoded one by one."""

    ndim, dtype = 3, np.dtype(bool)

    def __init__(self, codes: list[Any], size: tuple[int, int], crowd: list[Any]) -> None:
        """Store the codes.

        Args:
            codes: the masks of the objects, as pycocotools encodes them.
            size: height and width, in pixels.
            crowd: the regions that are no single objects, which are ignored.
        """
        self.codes, self.crowd, self.shape = codes, crowd, (len(codes), *size)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, number: int) -> NDArray[np.bool_]:
        return self._union([self.codes[number]])

    def any(self, _axis: int = 0) -> NDArray[np.bool_]:
        """Return the union (H, W) of all objects."""
        return self._union(self.codes)

    def ignored(self) -> NDArray[np.bool_]:
        """Return the pixels (H, W) of crowds that are on no object."""
        return self._union(self.crowd) & ~self.any()

    def _union(self, codes: list[Any]) -> NDArray[np.bool_]:
        if not codes:
            return np.zeros(self.shape[1:], bool)
        from pycocotools import mask as rle

        return np.asarray(rle.decode(rle.merge(codes)) != 0)


Mask = Any  # a label map (H, W); or a stack (N, H, W), which may be `Encoded`


def any_object(mask: Mask) -> NDArray[Any]:
    """Return the union (H, W) of all objects of a label map or a stack of masks."""
    return np.asarray(mask.any(0) if mask.ndim == 3 else mask != 0)


def pixel(coordinate: float) -> int:
    """Return the pixel index of a coordinate; integers are pixel centers."""
    return int(np.floor(coordinate + 0.5))


def object_at(mask: Mask, y: float, x: float) -> int:
    """Return the label of the object at a click, the smallest one in a stack; 0: background."""
    if mask.ndim == 2:
        return int(mask[pixel(y), pixel(x)])
    each = ((n + 1, mask[n]) for n in range(len(mask)))
    sizes = {n: np.count_nonzero(m) for n, m in each if m[pixel(y), pixel(x)]}
    return min(sizes, key=sizes.__getitem__, default=0)


def object_mask(mask: Mask, label: int) -> NDArray[np.bool_]:
    """Return the mask (H, W) of an object; label 1 is the first mask of a stack."""
    return np.asarray(mask == label if mask.ndim == 2 else mask[label - 1] != 0)


def object_masks(mask: Mask, labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the masks (N, H, W) of the objects with labels (N,)."""
    masks = np.zeros((len(labels), *mask.shape[-2:]), dtype=bool)
    if mask.ndim == 3:
        for number, label in enumerate(labels):
            masks[number] = mask[label - 1] != 0
    elif len(labels):  # each pixel is read once, not once per object
        at = np.flatnonzero(mask)  # pixels of any object
        own, order = mask.ravel()[at].astype(np.int64), np.argsort(labels)
        row = order[np.searchsorted(labels, own, sorter=order).clip(max=len(labels) - 1)]
        requested = labels[row] == own
        masks.reshape(len(labels), -1)[row[requested], at[requested]] = True
    return masks


def object_labels(mask: Mask) -> NDArray[Any]:
    """Return the labels (N,) of all objects."""
    if isinstance(mask, Encoded):
        return np.arange(1, len(mask) + 1)  # none is empty
    if mask.ndim == 3:
        return np.array([n + 1 for n, each in enumerate(mask) if each.any()], dtype=np.int64)
    return label_areas(mask)[0]


def label_areas(mask: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the labels of a label map, without 0, and their areas in pixels, (N,) each."""
    top = int(mask.max(initial=0))
    if top < 2**20 and int(mask.min(initial=0)) >= 0:  # counting is faster than sorting
        areas = np.bincount(mask.ravel().astype(np.int64, copy=False))
        found = np.flatnonzero(areas)
        areas = areas[found]
    else:
        found, areas = np.unique(mask, return_counts=True)
    some = found != 0
    return found[some].astype(np.int64), areas[some]


def components_of(mask: NDArray[Any]) -> NDArray[np.int32]:
    """Return a label map whose objects are the connected parts of each label, (H, W).

    Pixels that touch at a corner are connected.
    """
    from scipy import ndimage

    labels, parts, found = label_areas(mask)[0], np.zeros(mask.shape, dtype=np.int32), 0
    numbers = np.where(mask == 0, 0, np.searchsorted(labels, mask) + 1)  # 0 to N
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        inside = numbers[box] == number
        own, count = ndimage.label(inside, np.ones((3, 3)))
        parts[box][inside] = own[inside] + found
        found += count
    return parts


def label_map(mask: Mask) -> NDArray[np.int32]:
    """Return a label map (H, W) of all objects; in a stack, smaller ones cover larger ones."""
    if mask.ndim == 3:
        labels = np.zeros(mask.shape[1:], np.int32)
        pixels = [np.flatnonzero(mask[number]) for number in range(len(mask))]  # decoded once
        for number in sorted(range(len(mask)), key=lambda n: -len(pixels[n])):
            labels.ravel()[pixels[number]] = number + 1
        return labels
    if mask.max(initial=0) > np.iinfo(np.int32).max:
        mask = np.unique(mask, return_inverse=True)[1].reshape(mask.shape) + (mask.min() > 0)
    return np.asarray(mask, np.int32).copy()


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
