"""Checks of the shapes of images and masks, which error messages show in a few lines of text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# A picture of fewer and of more pixels on its sides is none.
THIN, LONG = 5, 16


def check_sizes(name: str, shape: tuple[int, ...], mask_name: str, mask: NDArray[Any]) -> None:
    """Check that an image and its mask have the same size.

    Args:
        name: name of the image, for messages.
        shape: its shape, (H, W), (H, W, 3), or only (H, W) of it.
        mask_name: name of the mask, for messages.
        mask: (H, W), or (N, H, W) with one mask per object.

    Raises:
        ValueError: They do not, or the image is not gray or RGB.
    """
    check_shape(name, shape)
    size = tuple(shape[:2])
    if mask.ndim in {2, 3} and mask.shape[-2:] == size:
        return
    hint = ""
    if mask.ndim == 3 and mask.shape[:2] == size:
        channels = mask.shape[2]
        gray = channels in {3, 4} and np.array_equal(mask[..., :1].repeat(3, 2), mask[..., :3])
        one = channels == 1 or gray
        axis, what = ("[..., 0]", "(H, W)") if one else (".transpose(2, 0, 1)", "(N, H, W)")
        hint = f": its objects are the last axis? Pass {what}, mask{axis}"
    elif size == mask.shape[::-1]:
        hint = " (transposed?)"
    shown = "\n" + sketch(mask) if mask.ndim == 2 else ""
    file = f" {mask_name.removeprefix('mask ')}" if "(" in mask_name else ""
    raise ValueError(f"{name} has shape {shape}, but its mask{file} has {mask.shape}{hint}{shown}")


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Check the shape of an image.

    Raises:
        ValueError: It is not the shape of an image with channels last.
    """
    if len(shape) not in {2, 3} or (len(shape) == 3 and shape[-1] not in {1, 3}) or 0 in shape:
        hint = ""
        if len(shape) == 3 and shape[0] in {1, 3}:
            hint = ": move the channels to the end, image.transpose(1, 2, 0)"
        elif len(shape) == 3 and shape[-1] == 4:
            hint = ": drop the alpha channel, image[..., :3]"
        elif len(shape) < 2:
            hint = ": of a single image, make a list, [image] and [mask]"
        raise ValueError(f"{name} has shape {shape}, but must have (H, W) or (H, W, 3){hint}")


def check_thin(name: str, shape: tuple[int, ...]) -> None:
    """Check that an image of a data set is not a part of one.

    Raises:
        ValueError: It is too thin.
    """
    if min(shape[:2]) < THIN and max(shape[:2]) >= LONG:
        raise ValueError(
            f"{name} has shape {shape}, which is no picture: if the last axis counts the images, "
            "move it to the front, np.moveaxis(images, -1, 0), that of the masks too; of a single "
            "image, make a list, [image] and [mask]"
        )


def note_on_axes(shape: tuple[int, ...]) -> str:
    """Return a sentence on an array of label maps (n, H, W) that may have the images last, or "".

    The first two sides are more alike than the last two, which are not those of most pictures.
    """
    if len(shape) != 3 or min(shape) < 2:
        return ""
    n, height, width = np.log(shape)
    if abs(height - width) < np.log(1.5) or abs(n - height) >= abs(height - width):
        return ""
    return (
        f"masks of shape {shape} are read as {shape[0]} images of {shape[1]} x {shape[2]} pixels: "
        "if the last axis counts the images, pass np.moveaxis(images, -1, 0), the masks likewise"
    )


def sketch(mask: NDArray[Any], y: float | None = None, x: float | None = None) -> str:
    """Return a mask (H, W) as at most 12 lines of text, with an X at a click."""
    (height, width), (rows, columns) = mask.shape, np.minimum(mask.shape, (12, 40))
    top, left = (np.arange(rows) * height) // rows, (np.arange(columns) * width) // columns
    blocks = np.maximum.reduceat(np.maximum.reduceat(mask != 0, top, 0), left, 1)
    text = np.where(blocks, "#", ".")
    if y is not None and x is not None:
        text[min(int(y * rows / height), rows - 1), min(int(x * columns / width), columns - 1)] = (
            "X"
        )
    return "\n".join("".join(line) for line in text)
