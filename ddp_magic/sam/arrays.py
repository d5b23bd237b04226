"""Checking and converting the arrays that users pass.

The error message of a check names the row or image, and shows the mask in a few lines of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddp_magic.sam.files import Files
from ddp_magic.sam.process_group import print0

FOREGROUND, BACKGROUND, PAD = 1, 0, -10  # labels of clicks in SAM; PAD: no click


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
        _check_shape(f"image {index}", shape)
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


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
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


def any_object(mask: NDArray[Any]) -> NDArray[Any]:
    """Return the union (H, W) of all objects of a label map or a stack of masks."""
    return np.asarray(mask.any(0) if mask.ndim == 3 else mask != 0)


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
        asked = labels[row] == own
        masks.reshape(len(labels), -1)[row[asked], at[asked]] = True
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


def gray_window(
    images: Sequence[Any] | NDArray[Any], given: tuple[float, float] | None = None
) -> tuple[float, float] | None:
    """Choose, and print, the values that are scaled to 0 and 255 in all images.

    Args:
        images: images of the same dtype. If they are files, up to 64 are read.
        given: the values, if they are known.

    Returns:
        (low, high) in the units of the images; None for uint8 images, which are not scaled.

    Raises:
        ValueError: The dtypes are different, values are not finite, or all values are so small that
            the images were probably divided by 255 twice.
    """
    step = -(-len(images) // 64) if isinstance(images, Files) else 1
    looked = [np.asarray(images[i]) for i in range(0, len(images), step)]
    types = {image.dtype for image in looked}
    if len(types) > 1:
        names = ", ".join(sorted(map(str, types)))
        raise ValueError(f"images have different dtypes, {names}: convert them to one dtype")
    if not types or not any(image.size for image in looked):
        return None
    kind = types.pop()
    low = min(float(np.min(image)) for image in looked)
    high = max(float(np.max(image)) for image in looked)
    if not np.isfinite([low, high]).all():
        raise ValueError("images contain values that are not finite: replace NaN and infinity")
    if low < high and low >= 0 and high <= (1 if kind.kind in "iu" else 1.01 / 255):
        brightest = next(i for i, image in enumerate(looked) if image.max() == high) * step
        raise ValueError(
            f"images of dtype {kind} with values {low:g}..{high:g} are nearly black: were they "
            "divided by 255 twice, or converted to integers after the division, or are they masks? "
            f"Image {brightest}:\n" + sketch(_plane(looked[brightest // step]) > high / 2)
        )
    if given is not None or kind == np.uint8:
        return given
    if kind.kind in "bf" and low >= 0 and high <= 1:
        window, rule = (0.0, 1.0), "multiplied by 255"
    elif low >= 0 and high <= 255:
        window, rule = (0.0, 255.0), "used as gray levels 0..255"
    else:  # percentiles, since microscopes have hot pixels; from at most ~4000 pixels per image
        flat = [image.ravel() for image in looked]
        sample = np.concatenate([pixels[:: 1 + pixels.size // 4096] for pixels in flat])
        first, last = np.percentile(sample, (0.1, 99.9))
        window = (float(first), float(last))
        rule = f"{first:g}..{last:g} (percentiles 0.1 and 99.9) stretched to 0..255"
    print0(f"images: {kind}, {low:g}..{high:g}; {rule}")
    return window


def _plane(image: NDArray[Any]) -> NDArray[Any]:
    return image if image.ndim == 2 else image.max(-1)


def to_rgb(image: ArrayLike, window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Convert an image to three channels of uint8.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3).
        window: the values that are scaled to 0 and 255; None: the image is uint8.

    Returns:
        A copy, (3, H, W) uint8.

    Raises:
        ValueError: The shape is invalid, or the image is not uint8 and `window` is None.
    """
    pixels = np.asarray(image)
    _check_shape("an image", pixels.shape)
    if window is not None:
        low, high = window
        gain = 255 / max(high - low, 1e-12)
        pixels = np.rint(np.clip((pixels.astype(np.float32) - low) * gain, 0, 255))
    elif pixels.dtype != np.uint8:
        raise ValueError(f"an image has dtype {pixels.dtype}, but other images have dtype uint8")
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    full = np.broadcast_to(channels_first, (3, *pixels.shape[:2]))
    # order="K" keeps channels last in memory, for which resizing takes two thirds of the time.
    return np.array(full, dtype=np.uint8, order="K")
