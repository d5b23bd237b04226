"""Checks of the images, masks and prompts that users pass.

The error message of a check names the row or image, and shows the mask in a few lines of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddp_magic.sam.items import BACKGROUND, FOREGROUND
from ddp_magic.sam.masks import any_object, object_at


def check_pair(index: int, shape: tuple[int, ...] | None, mask: NDArray[Any]) -> None:
    """Check that a mask is valid and matches its image.

    Args:
        index: index of both, for the message.
        shape: shape of the image, channels last; None: unknown.
        mask: (H, W), or (N, H, W) with one mask per object.

    Raises:
        ValueError: The shapes do not match, or the mask is not a label map or a boolean mask.
    """
    if shape is not None:
        check_shape(f"image {index}", shape)
        if shape[:2] != mask.shape[-2:] or mask.ndim not in {2, 3}:
            hint = " (transposed?)" if shape[:2] == mask.shape[::-1] else ""
            shown = "\n" + sketch(mask) if mask.ndim == 2 else ""
            raise ValueError(
                f"image {index} has shape {shape}, but its mask has {mask.shape}{hint}{shown}"
            )
    if mask.dtype.kind == "f" and not np.array_equal(mask, np.rint(mask)):
        raise ValueError(f"mask {index} contains fractions: use integer labels, or bool")
    if mask.dtype == np.uint8 and mask.ndim == 2:
        areas = np.bincount(mask.ravel(), minlength=256)
        white, top = areas[240:].sum(), int(mask.max(initial=0))  # JPEG may have 253
        between = int((areas[1:top] > 0).sum())
        if white * 2 > areas[1:].sum() and between > 8:
            raise ValueError(
                f"mask {index} is a grayscale image of a mask: between 0 and {top} there are "
                f"{between} values, each of which would be an object; pass mask > 127\n"
                + sketch(mask > 127)
            )


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Check the shape of an image.

    Raises:
        ValueError: It is not the shape of an image with channels last.
    """
    if len(shape) not in {2, 3} or (len(shape) == 3 and shape[-1] not in {1, 3}):
        hint = ": move the channels to the end" if len(shape) == 3 and shape[0] in {1, 3} else ""
        raise ValueError(f"{name} has shape {shape}, but must have (H, W) or (H, W, 3){hint}")


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
    rows = np.asarray([] if given is None else given, dtype=np.float64)
    rows = rows.reshape(-1, widths[-1]) if rows.size == 0 else rows
    if rows.ndim != 2 or rows.shape[1] not in widths:
        wanted = " or ".join(f"(P, {width})" for width in widths)
        raise ValueError(f"{name} has shape {rows.shape}, but must have {wanted}: {columns}")
    image = rows[:, 0]
    for row in np.flatnonzero(~((image >= 0) & (image < images) & (image == np.rint(image)))):
        raise ValueError(
            f"{name} row {row}: image index {image[row]:g} is not in 0..{images - 1}; "
            f"the columns are {columns}"
        )
    if rows.shape[1] == 3:
        rows = np.column_stack([rows, np.full(len(rows), FOREGROUND)])
    elif rows.shape[1] == 4:
        for row in np.flatnonzero(~np.isin(rows[:, 3], (FOREGROUND, BACKGROUND))):
            raise ValueError(f"{name} row {row}: invalid label {rows[row, 3]:g}: use 1 or 0")
    return rows


def check_click(
    y: float,
    x: float,
    size: Sequence[int] | NDArray[Any],
    where: str = "",
    mask: NDArray[Any] | None = None,
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


def on_background(row: int, click: NDArray[Any], mask: NDArray[Any]) -> str:
    """Return the message for a click on background."""
    image, y, x = click[:3]
    height, width = mask.shape[-2:]
    swapped = x < height - 0.5 and y < width - 0.5 and object_at(mask, x, y)
    return (
        f"coordinates row {row}: (image {image:g}, y {y:g}, x {x:g}) is on background; "
        "the columns are (image, y, x)"
        + ("; (x, y) would be on an object: are the axes swapped?" if swapped else "")
        + f"\n{sketch(any_object(mask), y, x)}"
    )


def sketch(mask: NDArray[Any], y: float | None = None, x: float | None = None) -> str:
    """Return a mask (H, W) as at most 12 lines of text, with an X at a click."""
    height, width = mask.shape
    rows, columns = min(height, 12), min(width, 40)
    top, left = (np.arange(rows) * height) // rows, (np.arange(columns) * width) // columns
    blocks = np.maximum.reduceat(np.maximum.reduceat(mask != 0, top, 0), left, 1)
    lines = [["#" if inside else "." for inside in line] for line in blocks]
    if y is not None and x is not None:
        lines[min(int(y * rows / height), rows - 1)][min(int(x * columns / width), columns - 1)] = (
            "X"
        )
    return "\n".join("".join(line) for line in lines)
