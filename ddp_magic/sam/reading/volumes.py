"""TIFF and NIfTI files, which may contain several images: by tifffile and nibabel."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddp_magic.sam.reading.channels import (
    Array,
    check_nodata,
    filled,
    labels_of_palette,
    native,
    turned,
)

BLACK = ": save it with tifffile.imwrite(path, array, photometric='minisblack')"
Foreign = Any  # a module or an object of a library without types


class Header(NamedTuple):
    """What a file contains, known without decoding its pixels."""

    pages: int  # images: pages of a TIFF, slices of a NIfTI volume, frames of a DICOM file
    size: tuple[int, int]  # height and width of an image in the right orientation, px
    dtype: np.dtype[Any]  # of the images that `read` returns; label maps may have others
    turn: int = 1  # the orientation in the metadata, which `read` applies; 1: none
    nodata: float | None = None  # the value that the file declares for pixels without data


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


# ---------------------------------------------------------------------------------------- TIFF


class _Tiff(NamedTuple):
    """How a TIFF is read."""

    head: Header
    series: list[Foreign]  # of tifffile, all alike
    order: tuple[int, ...]  # their axes: those that number the pages, Y, X, channels
    palette: bool  # whether colors come from the palette
    inverted: bool  # whether 0 is white


def tiff_header(path: Path, *, labels: bool) -> Header:
    """Return the header of a TIFF."""
    with require("tifffile").TiffFile(path) as file:
        return _tiff(file, labels=labels).head


def _series(file: Foreign) -> list[Foreign]:
    """Return the groups of pages of a TIFF, without previews."""
    return [each for each in file.series if not each.keyframe.is_reduced]


def _turn(page: Foreign) -> int:
    found = int(page.tags.valueof(274, 1))
    return found if found in range(1, 9) else 1


def _nodata(page: Foreign) -> float | None:
    """Return the value that GDAL has declared for pixels without data, if a pixel can have it."""
    text = str(page.tags.valueof(42113, "")).strip("\0 ")
    try:
        value = float(text)
    except ValueError:
        return None
    limits = np.iinfo(page.dtype) if page.dtype.kind in "iu" else None
    fits = limits is None or (limits.min <= value <= limits.max and value == round(value))
    return value if fits else None


def _tiff(file: Foreign, *, labels: bool) -> _Tiff:
    """Decide how to read a TIFF.

    Raises:
        ValueError: Its pages have several sizes, or its channels are not gray, or red, green, blue.
    """
    series = _series(file)
    kinds = {
        (each.axes, each.shape, each.dtype, each.keyframe.photometric, _turn(each.keyframe))
        for each in series
    }
    if len(kinds) != 1:  # where pages were written one by one, each is a series
        shapes = ", ".join(str(each.shape) for each in series[:4])
        raise ValueError(f"contains pages of several kinds ({shapes}): save each as a file")
    one, page = series[0], series[0].keyframe
    axes, shape = one.axes, one.shape
    channels = [n for n, name in enumerate(axes) if name in "SC" and shape[n] > 1]
    named_c = [n for n in channels if axes[n] == "C"]
    if len(channels) > 1 or (named_c and (labels or shape[named_c[0]] != 3)):
        raise ValueError(
            f"has axes {axes} of {shape}: save one channel, or three as red, green and blue"
        )
    colors = page.photometric.name
    as_rgb = colors == "YCBCR" and "JPEG" in page.compression.name  # decoded as RGB
    if colors not in {"MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "MASK"} and not as_rgb:
        raise ValueError(f"has the color space {colors}: save it as RGB")
    alpha = bool(page.extrasamples) and int(page.extrasamples[-1]) in {1, 2}
    if page.samplesperpixel - alpha not in {1, 3}:
        raise ValueError(
            f"has {page.samplesperpixel} channels, of which {'the last' if alpha else 'none'} is "
            "alpha: save one, or three as red, green and blue"
        )
    at = (axes.index("Y"), axes.index("X"))
    others = tuple(n for n in range(len(axes)) if n not in {*at, *channels})
    height, width = (shape[n] for n in at)
    if width < 5 <= height:
        raise ValueError(
            f"has {width} columns: are they channels? tifffile.imwrite(path, rgb, "
            "photometric='rgb') writes colors"
        )
    turn = _turn(page)
    # ImageJ saves its lookup tables, of false colors or inverted, with pixels that it measures.
    palette = colors == "PALETTE" and not file.is_imagej
    pages = len(series) * int(np.prod([shape[n] for n in others], dtype=int))
    dtype = np.dtype(np.uint8) if palette or one.dtype == bool else native(one.dtype)
    size = (width, height) if turn > 4 else (height, width)
    head = Header(pages, size, dtype, turn, _nodata(page))
    inverted = colors == "MINISWHITE" and not (labels and file.is_imagej)
    if inverted and not labels and one.dtype.kind not in "bu":
        raise ValueError(f"is a TIFF of {one.dtype} where 0 is white{BLACK}")
    return _Tiff(head, series, (*others, *at, *channels), palette, inverted)


def read_tiff(path: Path, number: int, *, labels: bool, ignore_label: int | None = None) -> Array:
    """Read a page of a TIFF, (H, W) or (H, W, C).

    Raises:
        ValueError: It is unclear which value of a mask is the object, or pixels without data would
            be one.
    """
    with require("tifffile").TiffFile(path) as file:
        plan = _tiff(file, labels=labels)
        which, at = divmod(number, plan.head.pages // len(plan.series))
        series, page = plan.series[which], plan.series[which].keyframe
        bits, shades = page.bitspersample, page.colormap
        if plan.head.pages == len(plan.series) * len(series.pages) and page.axes in {"YX", "YXS"}:
            page = series.pages[at]
            pixels, shades = page.asarray(), getattr(page, "colormap", shades)
        else:
            pixels = _tiff_stack(path, path.stat().st_mtime_ns, which, plan.order)[at]
    if labels:
        check_nodata(pixels, plan.head.nodata, ignore_label)
    if plan.palette:  # (3, colors), 8 or 16 bits
        palette = (shades >> 8 if shades.max() > 255 else shades).astype(np.uint8).T
        pixels = labels_of_palette(pixels, palette) if labels else palette[pixels]
    elif labels and plan.inverted and len(np.unique(pixels)) == 2:
        raise ValueError(
            f"is a TIFF where 0 is white, so that it is unclear which value is the object{BLACK}"
        )
    elif not labels:
        pixels, top = filled(pixels, plan.head.nodata), 2**bits - 1
        if plan.inverted:
            pixels = ~pixels if pixels.dtype == bool else top - pixels
        if bits < 8:
            pixels = pixels.astype(np.uint8) * (255 // top)
    return turned(pixels, plan.head.turn)


@lru_cache(maxsize=2)  # an image and its masks
def _tiff_stack(path: Path, _mtime_ns: int, which: int, order: tuple[int, ...]) -> Array:
    """Read a whole series of a TIFF, (pages, H, W) or (pages, H, W, C)."""
    with require("tifffile").TiffFile(path) as file:
        series = _series(file)[which]
        stack = series.asarray().transpose(order)
    numbering = len(order) - (3 if "C" in series.axes or "S" in series.axes else 2)
    return np.asarray(stack).reshape(-1, *stack.shape[numbering:])


# --------------------------------------------------------------------------------------- NIfTI


def nifti_header(path: Path) -> Header:
    """Return the header of a NIfTI volume, whose slices along Z are images.

    Raises:
        ValueError: It does not have two or three dimensions, or has colors.
    """
    volume = require("nibabel").load(path)
    shape = [*volume.shape, 1, 1]
    if len(volume.shape) < 2 or any(n > 1 for n in shape[3:]):
        raise ValueError(f"has shape {volume.shape}, but must have (X, Y) or (X, Y, Z): split it")
    dtype = volume.get_data_dtype()
    if dtype.fields:
        raise ValueError("has colors in a volume: save gray levels")
    scaled = (volume.dataobj.slope, volume.dataobj.inter) != (1, 0)
    return Header(shape[2], (shape[1], shape[0]), np.dtype(np.float64) if scaled else native(dtype))


def read_nifti(path: Path, number: int, like: Path | None) -> Array:
    """Read a slice, (H, W), of a volume whose axes are turned to those of the volume `like`."""
    # The first axis of NIfTI is x.
    return _nifti_volume(path, path.stat().st_mtime_ns, like)[..., number].T


@lru_cache(maxsize=2)  # an image and its masks
def _nifti_volume(path: Path, _mtime_ns: int, like: Path | None) -> Array:
    """Read a volume, (X, Y, Z)."""
    nibabel = require("nibabel")
    volume = nibabel.load(path)
    volume = volume if like is None else _as_axes_of(volume, nibabel.load(like))
    # Not the memory-mapped file, which might change.
    return np.array(np.asanyarray(volume.dataobj)).reshape(*volume.shape[:2], -1)


def check_affines(image: Path, mask: Path) -> None:
    """Check that a NIfTI label map covers the voxels of its image.

    Raises:
        ValueError: Its shape or affine is different, other than by the order of the axes.
    """
    ours, labels = (require("nibabel").load(path) for path in (image, mask))
    for path, volume in ((image, ours), (mask, labels)):
        if not np.isfinite(volume.affine).all() or np.linalg.det(volume.affine) == 0:
            raise ValueError(f"{path} has an invalid affine: save it with nibabel and a valid one")
    other = _as_axes_of(labels, ours)
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    shape, theirs = (*ours.shape, 1)[:3], (*other.shape, 1)[:3]
    corners[:, :3] *= np.array(shape) - 1
    there = corners @ (np.linalg.inv(ours.affine) @ other.affine).T  # in voxels of the image
    far = float(np.abs(there - corners).max())
    if theirs != shape or far > 0.5:
        raise ValueError(
            f"the label map {mask} has shape {theirs} and lies up to {far:.3g} voxels "
            f"away from the image {image} of shape {shape}: resample it to the image; or, "
            "if the arrays do match, save it with the image's affine: "
            "nibabel.Nifti1Image(labels, image.affine)"
        )


def _as_axes_of(volume: Foreign, like: Foreign) -> Foreign:
    """Flip and permute the axes of a volume of nibabel to those of another one."""
    orient = require("nibabel.orientations")
    ours, theirs = (orient.io_orientation(each.affine) for each in (volume, like))
    if len(volume.shape) < 3 or (ours == theirs).all():
        return volume
    return volume.as_reoriented(orient.ornt_transform(ours, theirs))
