"""What pixels mean: alpha, palettes, and the orientation in metadata."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Foreign = Any  # a module or an object of a library without types


class Header(NamedTuple):
    """What a file contains, known without decoding its pixels."""

    pages: int  # images: pages of a TIFF, slices of a NIfTI volume, frames of a DICOM file
    size: tuple[int, int] | None  # height and width in the right orientation, px; None: not known
    dtype: np.dtype[Any]  # of the images that `read` returns; label maps may have others
    turn: int = 1  # the orientation in the metadata, which `read` applies; 1: none
    axes: tuple[tuple[str, int], ...] = ()  # of a TIFF that number its pages: names and lengths
    place: Array | None = None  # from x, y[, z] in pixels, and 1, to mm or to a map, (n, n + 1)


UNKNOWN = Header(1, None, np.dtype(object))  # of an array


def require(module: str, extra: str = "sam") -> Foreign:
    """Import a module that an extra of this package installs.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        raise ImportError(f'needs {name}: pip install "ddp-magic[{extra}]"') from error


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


def check_clear(share: float) -> None:
    """Refuse an image of which a share of the pixels is transparent.

    Raises:
        ValueError: It is not 0.
    """
    if share:
        raise ValueError(
            f"is transparent in {share:.1%} of its pixels, so that their color is uncertain: save "
            "it without an alpha channel; other channels as one, or as red, green and blue"
        )


def _flat(channel: Array) -> bool:
    return bool((channel == channel.flat[0]).all())


def finished(pixels: Array, *, labels: bool) -> Array:
    """Return an image (H, W) or (H, W, 3), or a label map (H, W), from pixels with channels.

    The mask of a label map may be its alpha channel.

    Raises:
        ValueError: Pixels are transparent; a label map has colors, or two different masks.
    """
    if pixels.ndim == 3 and pixels.shape[2] > 4:
        raise ValueError(f"has {pixels.shape[2]} channels: save one, or red, green and blue")
    if pixels.ndim == 3:
        alpha = pixels[..., -1] if pixels.shape[2] in {2, 4} else None
        pixels = pixels if alpha is None else pixels[..., :-1]
        if labels:
            pixels = _one_channel(pixels, alpha)
        elif alpha is not None:
            check_clear(
                (alpha < (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1)).mean()
            )
        pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def _one_channel(colors: Array, alpha: Array | None) -> Array:
    if (colors != colors[..., :1]).any():
        raise ValueError(
            "contains colors, not labels: save masks with one channel, and the pages of a stack "
            "with photometric='minisblack'. If each color is an object, pass "
            "rgb[..., :3] @ [1, 1000, 1000000], in which black is the background"
        )
    gray = colors[..., 0]
    if alpha is None or _flat(alpha):
        return gray
    if _flat(gray):  # a cut-out: what is opaque is the object
        if (levels := len(np.unique(alpha))) > 2:
            raise ValueError(f"has {levels} levels in its alpha channel: save them without one")
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
