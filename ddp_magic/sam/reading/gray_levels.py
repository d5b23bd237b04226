"""Conversion of images of any dtype to uint8, by one rule for the whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddp_magic.sam.arrays.checks import check_shape, sketch
from ddp_magic.sam.process_group import print0
from ddp_magic.sam.reading.channels import UNKNOWN
from ddp_magic.sam.reading.files import dtype_of_item, in_memory, looked_at, name_of

FEW_LEVELS = 64  # a maximum below it is not that of gray levels 0..255, few of which would be left


def gray_window(
    images: Sequence[Any] | NDArray[Any], given: tuple[float, float] | None = None
) -> tuple[float, float] | None:
    """Choose, and print, the values that are scaled to 0 and 255 in all images.

    Args:
        images: images of the same dtype. If they are not in memory, up to 64 are read.
        given: the values, if they are known.

    Returns:
        (low, high) in the units of the images; None for uint8 images, which are not scaled.

    Raises:
        ValueError: The dtypes are different, values are not finite, all values are so small that
            the images were probably divided by 255 twice, or the given values are not in order.
    """
    given = None if given is None else _pair(given)
    numbers = looked_at(images, len(images) if in_memory(images) else 64)
    looked = {i: np.asarray(images[i]) for i in numbers}
    kind = _dtype_of(images, looked)
    if kind is None or not any(image.size for image in looked.values()):
        return None
    for i, image in looked.items():
        if not np.isfinite(image.sum(dtype=np.float64)):
            check_levels(name_of(images, "image", i), image, kind, None)
    highs = {i: float(image.max()) for i, image in looked.items() if image.size}
    flat = [i for i, image in looked.items() if image.size and image.min() == highs[i]]
    if flat and len(images) > 1:  # of a data set
        print0(f"{name_of(images, 'image', flat[0])} has one gray level: {highs[flat[0]]:g}")
    low = min(float(np.min(image)) for image in looked.values() if image.size)
    brightest = max(highs, key=highs.__getitem__)
    high = highs[brightest]
    if given is None and 0 <= low < high <= (1 if kind.kind in "iu" else 1.01 / 255):
        image = looked[brightest]
        raise ValueError(
            f"images of dtype {kind} with values {low:g}..{high:g} are nearly black: were they "
            "divided by 255 twice, or converted to integers after the division, or are they masks? "
            f"If they are right, pass window=({low:g}, {high:g}). "
            f"{name_of(images, 'image', brightest)}:\n"
            + sketch((image if image.ndim == 2 else image.max(-1)) > high / 2)
        )
    if given is not None or kind == np.uint8:
        return given
    # Of images that are scaled to 0..1, but not of integers in a dark image.
    dark = [i for i, top in highs.items() if 0 < top <= 1 and (looked[i] % 1).any()]
    if dark and kind.kind == "f" and low >= 0 and FEW_LEVELS <= high <= 255:
        raise ValueError(
            f"{name_of(images, 'image', dark[0])} has values up to {highs[dark[0]]:g}, but "
            f"{name_of(images, 'image', brightest)} up to {high:g}: scale them in the same way, "
            f"or pass window=(0, 255) if they are right"
        )
    window, rule = _chosen(list(looked.values()), low, high)
    print0(f"images: {kind}, {low:g}..{high:g}; {rule}")
    return window


def _dtype_of(images: Any, looked: dict[int, NDArray[Any]]) -> np.dtype[Any] | None:  # noqa: ANN401 -- a sequence
    """Return the dtype of all images; None if there are none.

    Raises:
        ValueError: There are several, or they are not numbers.
    """
    types: dict[np.dtype[Any], int] = {}  # the first image of each
    for i in range(len(images)):
        kind = looked[i].dtype if i in looked else dtype_of_item(images, i)
        if i in looked or kind != UNKNOWN.dtype:
            types.setdefault(kind, i)
    some = [f"{kind} ({name_of(images, 'image', i)})" for kind, i in types.items()]
    if len(types) > 1:
        raise ValueError(
            f"images have different dtypes, {', '.join(some[:3])}: convert them to one dtype"
        )
    if types and next(iter(types)).kind not in "biuf":
        raise ValueError(f"images have the dtype {some[0]}: use integers or floats")
    return next(iter(types), None)


def _pair(given: Any) -> tuple[float, float]:  # noqa: ANN401 -- whatever a user passes
    pair = np.asarray(given)
    is_pair = pair.shape == (2,) and pair.dtype.kind in "uif"
    if not is_pair or not -np.inf < pair[0] < pair[1] < np.inf:
        raise ValueError(f"invalid window {given!r}: use two numbers (low, high), low < high")
    return float(pair[0]), float(pair[1])


def _chosen(looked: list[NDArray[Any]], low: float, high: float) -> tuple[tuple[float, float], str]:
    """Return the values that are scaled to 0 and 255, and a sentence on them."""
    if looked[0].dtype.kind in "bf" and low >= 0 and high <= 1:
        return (0.0, 1.0), "multiplied by 255"
    if low >= 0 and FEW_LEVELS <= high <= 255:
        return (0.0, 255.0), "used as gray levels 0..255"
    # Percentiles, since microscopes have hot pixels; of at most ~4000 pixels per image.
    sample = np.concatenate([image.ravel()[:: 1 + image.size // 4096] for image in looked])
    first, last = np.percentile(sample, (0.1, 99.9)).tolist()
    source = "percentiles 0.1 and 99.9"
    if first == last:  # small objects on a flat background
        first, last, source = low, max(high, low + 1), "all values"
    return (first, last), f"{first:g}..{last:g} ({source}) stretched to 0..255"


def check_levels(
    name: str, image: NDArray[Any], dtype: np.dtype[Any], window: tuple[float, float] | None
) -> None:
    """Check that an image is like those that the window was chosen from.

    Raises:
        ValueError: Its dtype is different, its values are not finite, or not from 0 to 1 as theirs.
    """
    check_shape(name, image.shape)
    if image.dtype != dtype:
        raise ValueError(
            f"{name} has dtype {image.dtype}, but other images have dtype {dtype}: convert them to "
            "one dtype"
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError(f"{name} contains values that are not finite: replace NaN and infinity")
    if image.dtype.kind == "f" and window == (0.0, 1.0) and image.max(initial=0) > 1.01:
        raise ValueError(
            f"{name} has values up to {image.max():g}, but other images have values from 0 to 1: "
            "scale it like them"
        )


def to_rgb(image: ArrayLike, window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Convert an image to three channels of uint8.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3).
        window: the values that are scaled to 0 and 255; None: the image is uint8.

    Returns:
        A copy, (3, H, W) uint8.

    Raises:
        ValueError: The shape is invalid.
    """
    pixels = np.asarray(image)
    check_shape("an image", pixels.shape)
    if window is not None:
        low, high = window
        gain = 255 / max(high - low, 1e-12)
        pixels = np.rint(np.clip((pixels.astype(np.float32) - low) * gain, 0, 255))
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    full = np.broadcast_to(channels_first, (3, *pixels.shape[:2]))
    # order="K" keeps channels last in memory, for which resizing takes two thirds of the time.
    return np.array(full, dtype=np.uint8, order="K")
