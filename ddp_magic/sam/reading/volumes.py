"""TIFF and NIfTI files, which may contain several images: by tifffile and nibabel."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddp_magic.sam.reading.channels import (
    Array,
    Foreign,
    Header,
    labels_of_palette,
    require,
    turned,
)

LOSSY = {"JPEG", "OJPEG", "ALT_JPEG", "JPEG_LOSSY"}  # compressions of TIFF
BLACK = "; save it with tifffile.imwrite(path, array, photometric='minisblack')"


class _Tiff(NamedTuple):
    """How a TIFF is read."""

    head: Header
    series: list[Foreign]  # of tifffile, all alike
    order: tuple[int, ...]  # their axes: those that number the pages, Y, X, channels
    palette: bool  # whether colors come from the palette
    inverted: bool  # whether 0 is white


def tiff_header(path: Path, *, labels: bool) -> Header:
    """Return the header of a TIFF."""
    with _opened(path) as file:
        return _tiff(file, labels=labels).head


def _opened(path: Path) -> Foreign:
    """Open a TIFF; of an OME-TIFF of several files, each of which describes all, only this one."""
    return require("tifffile").TiffFile(path, _multifile=False)


def _series(file: Foreign) -> list[Foreign]:
    """Return the groups of pages of a TIFF, without previews."""
    return [each for each in file.series if not each.keyframe.is_reduced]


def _turn(page: Foreign) -> int:
    found = int(page.tags.valueof(274, 1))
    return found if found in range(1, 9) else 1


def _tiff(file: Foreign, *, labels: bool) -> _Tiff:
    """Decide how to read a TIFF.

    Raises:
        ValueError: Its pages have several sizes, or its channels are not gray, or red, green, blue.
    """
    series = _series(file)
    kinds = [(s.axes, s.shape, s.dtype, s.keyframe.photometric, _turn(s.keyframe)) for s in series]
    if len(set(kinds)) != 1:  # where pages were written one by one, each is a series
        raise ValueError("contains pages of several kinds: save each as a file")
    ((axes, shape, dtype, photometric, turn), page) = kinds[0], series[0].keyframe
    channels = [n for n, name in enumerate(axes) if name in "SC" and shape[n] > 1]
    named_c = [n for n in channels if axes[n] == "C"]
    alpha = bool(page.extrasamples) and int(page.extrasamples[-1]) in {1, 2}
    if len(channels) > 1 or (named_c and (labels or shape[named_c[0]] != 3)):
        raise ValueError(f"has axes {axes} of {shape}: save one channel, or red, green and blue")
    if page.samplesperpixel - alpha not in {1, 3}:
        raise ValueError(f"has {page.samplesperpixel} channels: save one, or red, green and blue")
    colors = photometric.name
    as_rgb = colors == "YCBCR" and "JPEG" in page.compression.name  # decoded as RGB
    if colors not in {"MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "MASK"} and not as_rgb:
        raise ValueError(f"has the color space {colors}: save it as RGB")
    at = (axes.index("Y"), axes.index("X"))
    others = tuple(n for n in range(len(axes)) if n not in {*at, *channels})
    height, width = (shape[n] for n in at)
    if width < 5 <= height:
        raise ValueError(
            f"has {width} columns: colors need tifffile.imwrite(.., photometric='rgb')"
        )
    inverted = colors == "MINISWHITE" and not (labels and file.is_imagej)
    if inverted and not labels and dtype.kind not in "bu":
        raise ValueError(f"is a TIFF of {dtype} where 0 is white{BLACK}")
    # ImageJ saves its lookup tables, of false colors or inverted, with pixels that it measures.
    palette = colors == "PALETTE" and not file.is_imagej
    kind = np.dtype(np.uint8) if palette or dtype.kind == "b" else dtype.newbyteorder("=")
    pages = len(series) * int(np.prod([shape[n] for n in others], dtype=int))
    numbering = tuple((axes[n], shape[n]) for n in others if shape[n] > 1)
    size = (width, height) if turn > 4 else (height, width)
    head = Header(pages, size, kind, turn, numbering, _place(page) if turn == 1 else None)
    return _Tiff(head, series, (*others, *at, *channels), palette, inverted)


def _place(page: Foreign) -> Array | None:
    """Return the place of a GeoTIFF, see `Header`; None: it is not one."""
    scale, tie, matrix = (page.tags.valueof(code) for code in (33550, 33922, 34264))
    if matrix:
        return np.reshape(matrix, (4, 4))[:2, [0, 1, 3]]
    if not (scale and tie):
        return None
    (column, row, _, x, y), (wide, high) = tie[:5], scale[:2]
    return np.array([[wide, 0, x - column * wide], [0, -high, y + row * high]])


def read_tiff(path: Path, number: int, *, labels: bool) -> Array:
    """Read a page of a TIFF, (H, W) or (H, W, C).

    Raises:
        ValueError: It is unclear which value of a mask is the object, or which pixels have data.
    """
    with _opened(path) as file:
        plan = _tiff(file, labels=labels)
        which, at = divmod(number, plan.head.pages // len(plan.series))
        series, page = plan.series[which], plan.series[which].keyframe
        top, shades, nodata = 2**page.bitspersample - 1, page.colormap, page.tags.valueof(42113, "")
        if plan.head.pages == len(plan.series) * len(series.pages) and page.axes in {"YX", "YXS"}:
            page = series.pages[at]
            pixels, shades = page.asarray(), getattr(page, "colormap", shades)
        else:
            pixels = _tiff_stack(path, path.stat().st_mtime_ns, which, plan.order)[at]
    _check_data(pixels, str(nodata).strip("\0 "), labels=labels)
    if plan.palette:  # (3, colors), 8 or 16 bits
        palette = (shades >> 8 if shades.max() > 255 else shades).astype(np.uint8).T
        pixels = labels_of_palette(pixels, palette) if labels else palette[pixels]
    elif labels and plan.inverted and len(np.unique(pixels)) == 2:
        raise ValueError(f"is a TIFF where 0 is white: which value is the object{BLACK}")
    elif labels and series.keyframe.compression.name in LOSSY and len(np.unique(pixels)) > 2:
        raise ValueError(
            "is a TIFF with JPEG compression, so that labels changed: save them without it"
        )
    elif not labels:
        if plan.inverted:
            pixels = ~pixels if pixels.dtype == bool else top - pixels
        if top < 255:
            pixels = pixels.astype(np.uint8) * (255 // top)
    return turned(pixels, plan.head.turn)


def _check_data(pixels: Array, nodata: str, *, labels: bool) -> None:
    """Refuse pixels without data, as GDAL declares them: as the darkest ones, or as an object."""
    try:
        value = float(nodata)
    except ValueError:
        return
    if value and (labels or pixels.dtype != np.uint8) and (pixels == value).any():
        remedy = f"tifffile.imread(path), and ignore_label={value:.0f}; or save them as 0"
        raise ValueError(
            f"has pixels of its nodata value {nodata}: "
            + (f"pass {remedy}" if labels else "fill them with the lowest value of the others")
        )


@lru_cache(maxsize=2)  # an image and its masks
def _tiff_stack(path: Path, _mtime_ns: int, which: int, order: tuple[int, ...]) -> Array:
    """Read a whole series of a TIFF, (pages, H, W) or (pages, H, W, C)."""
    with _opened(path) as file:
        series = _series(file)[which]
        stack = series.asarray().transpose(order)
    numbering = len(order) - (3 if "C" in series.axes or "S" in series.axes else 2)
    return np.asarray(stack).reshape(-1, *stack.shape[numbering:])


def nifti_header(path: Path) -> Header:
    """Return the header of a NIfTI volume, whose slices along Z are images.

    Raises:
        ValueError: It does not have two or three dimensions, or has colors.
    """
    volume = require("nibabel").load(path)
    shape, dtype = [*volume.shape, 1, 1], volume.get_data_dtype()
    if len(volume.shape) < 2 or any(n > 1 for n in shape[3:]):
        raise ValueError(f"has shape {volume.shape}, but must have (X, Y) or (X, Y, Z): split it")
    if dtype.fields:
        raise ValueError("has colors in a volume: save gray levels")
    if (volume.dataobj.slope, volume.dataobj.inter) != (1, 0):  # scaled
        dtype = np.dtype(np.float64)
    kind = dtype.newbyteorder("=")
    return Header(shape[2], (shape[1], shape[0]), kind, place=volume.affine[:3])


def read_nifti(path: Path, number: int, *, labels: bool) -> Array:
    """Read a slice, (H, W); the first axis of NIfTI is x."""
    volume, step = _nifti_volume(path, path.stat().st_mtime_ns)
    pixels: Array = volume[..., number].T
    if labels and step < 0.4:  # float labels that nibabel scaled to integers: 2.9999 is 3
        whole = np.rint(pixels)
        return whole if np.abs(pixels - whole).max() <= 0.51 * step else pixels
    return pixels


@lru_cache(maxsize=2)  # an image and its masks
def _nifti_volume(path: Path, _mtime_ns: int) -> tuple[Array, float]:
    """Read a volume, (X, Y, Z), and the difference of two values that are stored as 0 and 1."""
    volume = require("nibabel").load(path)
    # Not the memory-mapped file, which might change.
    pixels = np.array(np.asanyarray(volume.dataobj)).reshape(*volume.shape[:2], -1)
    return pixels, abs(volume.dataobj.slope)


def check_places(image: Path, mask: Path, head: Header, mask_head: Header) -> None:
    """Check that a mask has the shape and the place of its image, if NIfTI or GeoTIFF say them.

    Raises:
        ValueError: It has not.
    """
    ours, theirs = head.place, mask_head.place
    if ours is None or theirs is None or len(ours) != len(theirs):
        return
    n, sizes = len(ours), [(each.size or (0, 0)) for each in (head, mask_head)]
    shape, other = ((w, h, p)[:n] for (h, w), p in zip(sizes, (head.pages, mask_head.pages)))  # noqa: B905
    apart = np.abs(ours - theirs) @ (*shape, 1)  # at the corners
    if shape != other or not apart.max() <= 0.51 * np.linalg.norm(ours[:, :n], axis=0).min():
        raise ValueError(
            f"the label map {mask} of shape {other} has other axes, or lies elsewhere, than the "
            f"image {image} of shape {shape}: "
            + ("turn both with nibabel.as_closest_canonical, or " if n == 3 else "")
            + "resample it; if the arrays do match, save it with the "
            + ("affine of the image" if n == 3 else "GeoTIFF tags of the image, or without")
        )
