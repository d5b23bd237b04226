"""Checks of clicks and boxes, which must be on objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddp_magic.sam.arrays.checks import sketch
from ddp_magic.sam.arrays.items import BACKGROUND, FOREGROUND
from ddp_magic.sam.arrays.masks import (
    Mask,
    any_object,
    box_iou,
    box_of,
    object_at,
    object_labels,
    object_mask,
    pixel,
)

AS_XY = "(image, x0, y0, x1, y1); move its columns: boxes[:, [0, 2, 1, 4, 3]]"


def prompt_rows(
    given: ArrayLike | None, name: str, images: int, widths: tuple[int, ...], columns: str
) -> NDArray[Any]:
    """Return prompts as rows of float64, where clicks have a label.

    Args:
        given: prompts, (P, C) with C in `widths`, the image index first; None: no prompts.
        name: name of the argument, for messages.
        images: number of images.
        widths: the allowed numbers of columns.
        columns: names of the columns, for messages.

    Raises:
        ValueError: The shape, an image index, or a label is invalid.
    """
    try:
        rows = np.asarray([] if given is None else given, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be an array of numbers, {columns}: {error}") from error
    rows = rows.reshape(-1, widths[-1]) if rows.size == 0 else rows
    if rows.ndim != 2 or rows.shape[1] not in widths:
        wanted = " or ".join(f"(P, {width})" for width in widths)
        raise ValueError(f"{name} has shape {rows.shape}, but must have {wanted}: {columns}")
    if rows.shape[1] == 3:
        rows = np.column_stack([rows, np.full(len(rows), FOREGROUND)])
    image = rows[:, 0]
    for row in np.flatnonzero(~((image >= 0) & (image < images) & (image == np.rint(image)))):
        raise ValueError(
            f"{name} row {row}: image index {image[row]:g} is not in 0..{images - 1}; the columns "
            f"are {columns}"
        )
    clicks = rows if rows.shape[1] == 4 else rows[:0]
    for row in np.flatnonzero(~np.isin(clicks[:, -1], (FOREGROUND, BACKGROUND))):
        raise ValueError(f"{name} row {row}: invalid label {rows[row, -1]:g}: use 1 or 0")
    return rows


def objects_clicked(
    rows: NDArray[Any], mask_of: Callable[[int], Mask], name_of: Callable[[int], str]
) -> NDArray[Any]:
    """Return the label of the object that each click belongs to, (P,).

    Args:
        rows: clicks (P, 4), from `prompt_rows`.
        mask_of: function that returns the mask of an image.
        name_of: function that returns the name of an image, such as "image 0 (a.png)".

    Raises:
        ValueError: A click is outside its image, or not on, or off, an object.
    """
    labels = np.zeros(len(rows), dtype=np.int64)
    for image, numbers in _by_image(rows):
        mask, current = mask_of(image), 0
        height, width = mask.shape[-2:]
        for row in numbers:
            _, y, x, label = rows[row]
            where = f"coordinates row {row}: {name_of(image)}, "
            check_click(y, x, mask.shape[-2:], where, mask)
            if label == FOREGROUND and not (current := object_at(mask, y, x)):
                inside = x < height - 0.5 and y < width - 0.5
                swapped = inside and object_at(mask, x, y)
                raise ValueError(
                    f"coordinates row {row}: (image {image}, y {y:g}, x {x:g}) is on background of "
                    f"{name_of(image)}; the columns are (image, y, x)"
                    + ("; (x, y) would be on an object: are the axes swapped?" if swapped else "")
                    + f"\n{sketch(any_object(mask), y, x)}"
                )
            if not current:
                raise ValueError(f"{where}label 0 needs a click with label 1 before it")
            own = object_mask(mask, current)
            if label != FOREGROUND and own[pixel(y), pixel(x)]:
                raise ValueError(
                    f"{where}a click with label 0 must be off its object, but is on it\n"
                    + sketch(own, y, x)
                )
            labels[row] = current
    return labels


def objects_in_boxes(
    rows: NDArray[Any], mask_of: Callable[[int], Mask], name_of: Callable[[int], str]
) -> NDArray[Any]:
    """Return the label of the object inside each box, (Q,).

    Args:
        rows: boxes (Q, 5), from `prompt_rows`.
        mask_of: function that returns the mask of an image.
        name_of: function that returns the name of an image, such as "image 0 (a.png)".

    Raises:
        ValueError: A box is outside its image, or around no object; or x and y are swapped.
    """
    labels, swapped = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows))
    for image, numbers in _by_image(rows):
        mask = mask_of(image)
        found = object_labels(mask)
        # (N, 4), also if N is 0
        around = np.reshape([box_of(object_mask(mask, label)) for label in found], (-1, 4))
        for row in numbers:
            y0, x0, y1, x1 = rows[row, 1:]
            where = f"boxes row {row}: {name_of(image)}, "
            check_ends((y0, x0, y1, x1), mask.shape[-2:], where)
            for y, x in ((y0, x0), (y1, x1)):
                check_click(y, x, mask.shape[-2:], where, mask)
            fits = box_iou(np.array([x0, y0, x1, y1]), around)
            swapped[row] = box_iou(rows[row, 1:], around).max(initial=0) - fits.max(initial=0)
            if not (y0 < y1 and x0 < x1) or fits.max(initial=0) < 0.3:
                near = around[fits.argmax()].tolist() if fits.any() else []
                tight = f" tightly: the nearest is in (x0, y0, x1, y1) {near}" if near else ""
                raise ValueError(
                    f"{where}y {y0:g}..{y1:g}, x {x0:g}..{x1:g} is not around any object{tight}; "
                    "the columns are (image, y0, x0, y1, x1)"
                    + (f": is it {AS_XY}?" if swapped[row] > 0.5 else "")
                    + f"\n{sketch(any_object(mask), (y0 + y1) / 2, (x0 + x1) / 2)}"
                )
            labels[row] = found[fits.argmax()]
            if len(twice := numbers[labels[numbers] == labels[row]]) > 1:
                raise ValueError(
                    f"{where}the object has another box, in row {twice[0]}: use one box per object"
                )
    if len(rows) and swapped.mean() > 0.2:  # in their order, some are around other objects
        raise ValueError(f"boxes fit the objects better as {AS_XY}")
    return labels


def check_ends(box: Sequence[float], size: Sequence[int], where: str = "") -> None:
    """Check that a box (y0, x0, y1, x1) does not end one pixel after its object.

    Raises:
        ValueError: It does, at the border of an image of this height and width.
    """
    y0, x0, y1, x1 = box
    beyond = max(y1 - size[0], x1 - size[1]) + 1
    if 0 < beyond <= 1 and min(y0, x0) >= 0:
        raise ValueError(
            f"{where}y1 {y1:g}, x1 {x1:g} is outside {size[0]} x {size[1]} pixels by {beyond:g}: "
            "y1 and x1 are the last pixels of the object. From the exclusive ends of "
            "skimage.measure.regionprops and of slices, subtract 1"
        )


def _by_image(rows: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield pairs of an image index and the numbers of its rows, in order."""
    order = np.argsort(rows[:, 0], kind="stable")
    images, first = np.unique(rows[order, 0], return_index=True)
    yield from zip(images.astype(int).tolist(), np.split(order, first[1:]), strict=False)


def check_click(
    y: float, x: float, size: Sequence[int], where: str = "", mask: Mask | None = None
) -> None:
    """Check that a click is inside an image.

    Args:
        y: coordinate of the click, in pixels.
        x: coordinate of the click, in pixels.
        size: height and width of the image, in pixels.
        where: prefix of the message, such as the row of the click.
        mask: mask of the objects, (H, W) or (N, H, W), to show in the message.

    Raises:
        ValueError: The click is outside. The message says whether swapped axes would be inside.
    """
    height, width = size
    if not (-0.5 <= y < height - 0.5 and -0.5 <= x < width - 0.5):
        fits = -0.5 <= x < height - 0.5 and -0.5 <= y < width - 0.5
        far = y > 2 * height or x > 2 * width
        raise ValueError(
            f"{where}y {y:g}, x {x:g} is outside {height} x {width} pixels"
            + (" (are y and x swapped?)" if fits else "")
            + (" (coordinates for another image size?)" if far and not fits else "")
            + ("" if mask is None else "\n" + sketch(any_object(mask)))
        )
