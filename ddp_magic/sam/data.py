"""The data set: images, masks, and the prompts of the objects.

Its items are described in `items`; `batches` combines them into batches.

In shapes, N is the number of objects of one image, P the number of clicks, and H x W the size in
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from ddp_magic.sam.checks import check_click, check_pair, on_background, prompt_rows, sketch
from ddp_magic.sam.files import Files, check_names, open_files
from ddp_magic.sam.gray_levels import gray_window, to_rgb
from ddp_magic.sam.items import FOREGROUND, Item, no_prompts
from ddp_magic.sam.masks import (
    any_object,
    box_iou,
    box_of,
    object_at,
    object_labels,
    object_mask,
    object_masks,
    pixel,
)

Images = Sequence[ArrayLike] | NDArray[Any] | str | Path


class SamDataset(Dataset[Item]):
    """A data set of images, masks, and prompts.

    A click prompts the object under it. All clicks on the same object, and a box around it, form
    one prompt. Objects without a prompt are not used; an image without prompts stays in the data
    set, without objects. If the data set has neither clicks nor boxes, all objects are used, and
    each epoch draws new prompts for them.
    """

    def __init__(
        self,
        images: Images,
        masks: Images,
        coordinates: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        window: tuple[float, float] | None = None,
    ) -> None:
        """Check images, masks and prompts, so that a mistake is an error and not a low score.

        Args:
            images: n images (H, W) or (H, W, 3), of equal or different sizes, all of the same
                dtype. uint8 images are used as they are; other dtypes are scaled to 0..255 by one
                rule for the whole data set, which is printed. Or a folder, or a list of files: PNG,
                JPEG, TIFF (each page) or NIfTI (each slice).
            masks: n label maps (H, W), where 0 is background and every other number is an object;
                boolean, 0/1 or 0/255 masks of a single object; or stacks (N, H, W) with one mask
                per object, which may overlap. Or a folder, or a list of files, with label maps.
            coordinates: clicks (P, 3) or (P, 4), rows (image index, y, x) or (image index, y, x,
                label), in pixels, where integers are pixel centers. The label is 1 on the object
                and 0 off it. A click with label 0 belongs to the object of the click before it. In
                a stack, a click prompts the smallest mask under it.
            boxes: boxes (Q, 5), rows (image index, y0, x0, y1, x1) in pixels, each around one
                object.
            window: the two image values that are scaled to 0 and 255, for example the `window` of
                the training set for a validation set. None: the rule above.

        Raises:
            ValueError: Images, masks and prompts do not match. The message contains the row, and
                the mask with the click in it.
            FileNotFoundError: A file does not exist.
        """
        self.images, self.masks = _sequence(images, labels=False), _sequence(masks, labels=True)
        if isinstance(self.images, Files) and isinstance(self.masks, Files):
            check_names(self.images, self.masks)
        if len(self.images) != len(self.masks):
            raise ValueError(f"{len(self.images)} images but {len(self.masks)} masks")
        if not (isinstance(self.images, Files) or isinstance(self.masks, Files)):
            for i in range(len(self.images)):
                check_pair(i, np.shape(self.images[i]), np.asarray(self.masks[i]))
        self.window = gray_window(self.images, window)
        self.has_prompts = coordinates is not None or boxes is not None
        clicks = prompt_rows(
            coordinates, "coordinates", len(self.images), (3, 4), "(image, y, x[, label])"
        )
        box_rows = prompt_rows(boxes, "boxes", len(self.images), (5,), "(image, y0, x0, y1, x1)")
        of_click = self._objects_clicked(clicks)  # (P,)
        of_box = self._objects_in_boxes(box_rows)  # (Q,)
        self._index(clicks, of_click, box_rows, of_box)

    def _index(
        self,
        clicks: NDArray[Any],
        of_click: NDArray[Any],
        box_rows: NDArray[Any],
        of_box: NDArray[Any],
    ) -> None:
        """Sort the prompts by object, so that the prompts of an item are slices."""
        image = np.concatenate([clicks[:, 0], box_rows[:, 0]]).astype(np.int64)
        label = np.concatenate([of_click, of_box])
        order = np.argsort(image, kind="stable")
        pairs = np.stack([image, label], 1)[order]  # (P + Q, 2)
        unique, first, inverse = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        by_first = np.argsort(first)  # objects by image, then by their first prompt
        number = np.empty(len(order), dtype=np.int64)
        number[order] = np.argsort(by_first)[inverse.reshape(-1)]  # object of each prompt
        prompted = unique[by_first]  # (objects, 2)
        ends = np.arange(len(self.images) + 1)
        self.object_labels = prompted[:, 1]
        self.object_starts = np.searchsorted(prompted[:, 0], ends)  # (n + 1,)
        own = number[: len(clicks)]
        order = np.argsort(own, kind="stable")
        self.points = clicks[order][:, [2, 1]].astype(np.float32)  # (P, 2), (x, y) as in SAM
        self.point_labels = clicks[order, 3].astype(np.int64)  # (P,)
        self.point_counts = np.bincount(own, minlength=len(prompted)).astype(np.int64)
        self.point_starts = np.searchsorted(clicks[order, 0], ends)  # (n + 1,)
        self.boxes = np.full((len(prompted), 4), np.nan, dtype=np.float32)  # (x0, y0, x1, y1)
        self.boxes[number[len(clicks) :]] = box_rows[:, [2, 1, 4, 3]]

    def _objects_clicked(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the label of the object that each click belongs to, (P,)."""
        labels = np.zeros(len(rows), dtype=np.int64)
        for image, numbers in _by_image(rows):
            mask, current = np.asarray(self.masks[image]), 0
            check_pair(image, None, mask)
            for row in numbers:
                _, y, x, label = rows[row]
                where = f"coordinates row {row}: image {image}, "
                check_click(y, x, mask.shape[-2:], where, mask)
                if label == FOREGROUND:
                    current = object_at(mask, y, x)
                    if not current:
                        raise ValueError(on_background(row, rows[row], mask))
                elif not current:
                    raise ValueError(f"{where}label 0 needs a click with label 1 before it")
                elif object_mask(mask, current)[pixel(y), pixel(x)]:
                    raise ValueError(
                        f"{where}a click with label 0 must be off its object, but is on it\n"
                        + sketch(object_mask(mask, current), y, x)
                    )
                labels[row] = current
        return labels

    def _objects_in_boxes(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the label of the object inside each box, (Q,)."""
        labels = np.zeros(len(rows), dtype=np.int64)
        for image, numbers in _by_image(rows):
            mask = np.asarray(self.masks[image])
            check_pair(image, None, mask)
            found = object_labels(mask)
            boxes = [box_of(object_mask(mask, label)) for label in found]
            around = np.reshape(boxes, (-1, 4))  # (N, 4), also if N is 0
            for row in numbers:
                y0, x0, y1, x1 = rows[row, 1:]
                where = f"boxes row {row}: image {image}, "
                check_click(y0, x0, mask.shape[-2:], where, mask)
                check_click(y1, x1, mask.shape[-2:], where, mask)
                fits = box_iou(np.array([x0, y0, x1, y1]), around)
                if not (y0 < y1 and x0 < x1) or fits.max(initial=0) < 0.3:
                    raise ValueError(
                        f"{where}y {y0:g}..{y1:g}, x {x0:g}..{x1:g} is not around any object; "
                        f"the columns are (image, y0, x0, y1, x1)\n"
                        + sketch(any_object(mask), (y0 + y1) / 2, (x0 + x1) / 2)
                    )
                labels[row] = found[fits.argmax()]
        return labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """Return one image and its objects; see `ddp_magic.sam.items`."""
        target, image = self.target(index), self.image(index)
        check_pair(index, image.shape[1:], target["masks"].numpy())
        return {**target, "image": torch.from_numpy(image)}

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return one image, (3, H, W) uint8."""
        return to_rgb(self.images[index], self.window)

    def target(self, index: int) -> Item:
        """Return an item without its image."""
        index = range(len(self))[index]  # supports negative indices; raises IndexError
        mask = np.asarray(self.masks[index])
        check_pair(index, None, mask)
        if self.has_prompts:
            labels, prompts = self.prompts(index)
        else:
            labels = object_labels(mask)
            prompts = no_prompts(len(labels))
        masks = object_masks(mask, labels)  # (N, H, W)
        keys = index * 4096 + torch.arange(len(labels))
        return {**prompts, "masks": torch.from_numpy(masks), "keys": keys}

    def prompts(self, index: int) -> tuple[NDArray[Any], Item]:
        """Return the labels (N,) of the objects of an image, and their clicks and boxes."""
        first, last = self.object_starts[index], self.object_starts[index + 1]
        start, end = self.point_starts[index], self.point_starts[index + 1]
        return self.object_labels[first:last], {
            "points": torch.from_numpy(self.points[start:end]),
            "labels": torch.from_numpy(self.point_labels[start:end]),
            "counts": torch.from_numpy(self.point_counts[first:last]),
            "boxes": torch.from_numpy(self.boxes[first:last]),
        }


def _sequence(pictures: Images, *, labels: bool) -> Sequence[Any] | NDArray[Any]:
    """Return arrays unchanged, and paths as a sequence that reads a file when it is indexed."""
    paths: Any = pictures
    if isinstance(paths, (str, Path)) or (len(paths) and isinstance(paths[0], (str, Path))):
        return open_files(paths, labels=labels)
    given: Sequence[Any] = paths
    return given


def _by_image(rows: NDArray[Any]) -> list[tuple[int, NDArray[Any]]]:
    """Return pairs of an image index and the numbers of its rows, in order."""
    order = np.argsort(rows[:, 0], kind="stable")
    images, first = np.unique(rows[order, 0], return_index=True)
    return list(zip(images.astype(int).tolist(), np.split(order, first[1:]), strict=False))
