"""What pixels mean: alpha, palettes, the orientation in metadata, and pixels without data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def turned(pixels: Array, orientation: int) -> Array:
    """Return pixels (H, W, ...) as an orientation of EXIF or TIFF, 1 to 8, says.

    Source:
        TIFF 6.0, tag 274: 1 to 4 have the first row at the top or bottom and the first column at
        the left or right; 5 to 8 are these, transposed.
    """
    if orientation > 4:
        pixels, orientation = pixels.swapaxes(0, 1), {5: 1, 6: 2, 7: 3, 8: 4}[orientation]
    down, right = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1)}[orientation]
    return pixels[::down, ::right]


def filled(pixels: Array, nodata: float | None) -> Array:
    """Return an image whose pixels without data have the lowest value of its others.

    Their own value, such as -9999, would be the darkest one when the image is scaled to uint8.
    uint8 images are not scaled, and stay as they are.

    Args:
        pixels: (H, W) or (H, W, C).
        nodata: the value of pixels without data, perhaps NaN; None: there are none.

    Raises:
        ValueError: No pixel has data.
    """
    if nodata is None or pixels.dtype.kind not in "iuf" or pixels.dtype == np.uint8:
        return pixels
    value = pixels.dtype.type(nodata)  # in a file, it is text of a float64
    absent: Array = np.isnan(pixels) if np.isnan(nodata) else np.equal(pixels, value)
    if pixels.shape[-1] in {3, 4}:  # of a color, all channels
        absent = np.broadcast_to(absent.all(-1, keepdims=True), pixels.shape)
    if absent.all():
        raise ValueError(f"has no pixels but those of its nodata value {nodata:g}")
    return np.where(absent, pixels[~absent].min(), pixels)


def check_nodata(labels: Array, nodata: float | None, ignore_label: int | None) -> None:
    """Check that pixels without data are no object of a label map.

    Raises:
        ValueError: There are some, whose value is neither 0 nor `ignore_label`.
    """
    if nodata not in {None, 0, ignore_label} and (labels == nodata).any():
        raise ValueError(
            f"declares the value {nodata:g} for pixels without data: "
            f"SamDataset(..., ignore_label={nodata:.0f}) leaves them out; otherwise, save them as 0"
        )


def without_alpha(pixels: Array) -> Array:
    """Return an image (H, W) or (H, W, 3) from one with an alpha channel that is opaque.

    Raises:
        ValueError: Some pixels are transparent, or there are more than four channels.
    """
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels
    if pixels.shape[2] > 4:
        raise ValueError(f"has {pixels.shape[2]} channels: save one, or three as red, green, blue")
    if pixels.shape[2] in {2, 4}:
        check_clear((pixels[..., -1] < _opaque(pixels)).mean())
        pixels = pixels[..., :-1]
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def check_clear(share: float) -> None:
    """Check that no pixels of an image are transparent.

    Raises:
        ValueError: A share of them is.
    """
    if share:
        raise ValueError(
            f"is transparent in {share:.1%} of its pixels, so that their color is uncertain: save "
            "it on a background, without an alpha channel. If the last channel is not alpha, save "
            "one channel, or three as red, green and blue"
        )


def one_channel(pixels: Array) -> Array:
    """Return a label map (H, W) from channels that are equal, or whose mask is the alpha channel.

    Raises:
        ValueError: The pixels have colors, or two different masks.
    """
    if pixels.ndim == 2:
        return pixels
    alpha = pixels[..., -1] if pixels.shape[2] in {2, 4} else None
    colors = pixels if alpha is None else pixels[..., :-1]
    if (colors != colors[..., :1]).any():
        raise ValueError(
            "contains colors, not labels: save masks with one channel. If each color is an object, "
            "np.unique(rgb.reshape(-1, 3), axis=0, return_inverse=True)[1].reshape(rgb.shape[:2]) "
            "numbers them; if the object is what is opaque, save the alpha channel"
        )
    gray = colors[..., 0]
    if alpha is None or _is_flat(alpha):
        return gray
    if _is_flat(gray):  # a cut-out: what is opaque is the object
        levels = len(np.unique(alpha))
        if levels > 2:
            raise ValueError(
                f"has {levels} levels in its alpha channel: save labels without one; for one "
                "object, alpha > 127"
            )
        return np.asarray(alpha != alpha.min())
    if gray[alpha == 0].any():
        raise ValueError("has different masks in its gray levels and its alpha channel: save one")
    return gray


def labels_of_palette(indices: Array, palette: Array) -> Array:
    """Return the labels (H, W) of an image with a palette: its indices, if 0 is black.

    Where the palette is a scale of gray, its gray levels are the labels, as in a mask of black and
    white, or where a writer left out the colors that are not used.

    Args:
        indices: the pixels, (H, W).
        palette: red, green and blue of each index, (colors, 3) uint8.

    Raises:
        ValueError: It is unclear which index is the background.
    """
    used = np.unique(indices)
    if used.max(initial=0) >= len(palette):
        raise ValueError("has indices without a color in its palette: save it without a palette")
    black = [int(index) for index in used if not palette[index].any()]
    gray = (palette == palette[:, :1]).all(1)
    levels = len(np.unique(palette[used, 0])) if gray[used].all() else 0
    is_scale = gray.all() and levels == len(used)
    if not is_scale and (black == [0] or (0 not in used and not black)):
        return indices
    if levels > 1 or levels == len(used):
        return np.asarray(palette[indices, 0], dtype=np.uint8)
    raise ValueError(
        f"has a palette, in which the indices {black or 'none'} are black, so that the background "
        "is uncertain: save the labels without a palette, with 0 as background"
    )


def _is_flat(channel: Array) -> bool:
    return bool((channel == channel.flat[0]).all())


def _opaque(pixels: Array) -> float:
    return float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind in "iu" else 1.0


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype in the byte order of this machine."""
    return dtype.newbyteorder("=")


def finished(pixels: Array, *, labels: bool) -> Array:
    """Return an image (H, W) or (H, W, 3), or a label map (H, W), from pixels with channels."""
    pixels = one_channel(pixels) if labels else without_alpha(pixels)
    return np.ascontiguousarray(pixels, dtype=native(pixels.dtype))
