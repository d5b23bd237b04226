"""From a file or a PIL image to an array: in the right orientation, with its dtype and channels.

Each format is read by a library that knows it: TIFF by tifffile, NIfTI by nibabel, DICOM by
pydicom, other images by Pillow, and what Pillow would reduce to 8 bits by imagecodecs. A file whose
meaning is not certain is refused: the error names it and says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ddp_magic.sam.reading import dicom, volumes
from ddp_magic.sam.reading.channels import Array, finished
from ddp_magic.sam.reading.pil import picture_header, read_picture
from ddp_magic.sam.reading.volumes import Header

T = TypeVar("T")

PICTURES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif")
PICTURES += (".jp2", ".j2k", ".jpx", ".pgm", ".ppm", ".pbm", ".pnm")
TIFF, NIFTI, NUMPY, DICOM = (".tif", ".tiff"), (".nii", ".nii.gz"), (".npy",), (".dcm", ".dicom")


def header(path: Path, *, labels: bool = False) -> Header:
    """Return what a file contains, without decoding its pixels.

    Raises:
        ValueError: The file cannot be read, or its meaning is not certain.
        ImportError: Reading the file needs a package that is not installed.
    """
    return _naming(path, lambda: _header(path, labels=labels))


def read(
    path: Path,
    page: int = 0,
    *,
    labels: bool,
    like: Path | None = None,
    ignore_label: int | None = None,
) -> Array:
    """Read an image, (H, W) or (H, W, 3), or a label map, (H, W).

    Args:
        path: the file; an .npy file may also contain a stack of masks (N, H, W).
        page: index of the page, slice or frame.
        labels: whether it is a label map; then palette indices are the labels.
        like: for a NIfTI label map, the image whose axes it gets.
        ignore_label: in a label map, the label of pixels that are left out.

    Raises:
        ValueError: The file cannot be read, or its meaning is not certain.
        ImportError: Reading the file needs a package that is not installed.
    """
    return _naming(path, lambda: _read(path, page, labels, like, ignore_label))


def kind_of(path: Path) -> tuple[str, ...]:
    """Return the suffixes of the kind of a file; without a known one, look for DICOM's mark.

    Returns:
        PICTURES, TIFF, NIFTI, NUMPY or DICOM; or () if it is none of them.
    """
    for kind in (PICTURES, TIFF, NIFTI, NUMPY, DICOM):
        if path.name.lower().endswith(kind):
            return kind
    with path.open("rb") as file:
        return DICOM if file.read(132)[128:] == b"DICM" else ()


def _naming(path: Path, work: Callable[[], T]) -> T:
    """Call a function, and name the file in its errors."""
    try:
        return work()
    except (FileNotFoundError, MemoryError):
        raise
    except ImportError as error:
        raise ImportError(f"{path}: {error}") from error
    except Exception as error:  # decoders raise what they like for a broken file
        raise ValueError(f"{path}: {error}") from error


def _header(path: Path, *, labels: bool) -> Header:
    kind = kind_of(path)
    if kind == TIFF:
        return volumes.tiff_header(path, labels=labels)
    if kind == NIFTI:
        return volumes.nifti_header(path)
    if kind == DICOM:
        return dicom.dicom_header(path)
    if kind == NUMPY:
        array = _read_npy(path, "r")
        shapes = "(H, W) or (N, H, W)" if labels else "(H, W) or (H, W, 3)"
        if array.ndim not in {2, 3} or not (labels or array.shape[2:] in {(), (1,), (3,)}):
            raise ValueError(f"has shape {array.shape}, but must have {shapes}")
        height, width = array.shape[-2:] if labels else array.shape[:2]  # masks may have N first
        return Header(1, (height, width), array.dtype)
    return picture_header(path, labels=labels)


def _read(
    path: Path, page: int, labels: bool, like: Path | None, ignore_label: int | None
) -> Array:
    kind = kind_of(path)
    if kind == NUMPY:
        return _read_npy(path)
    if kind == TIFF:
        pixels = volumes.read_tiff(path, page, labels=labels, ignore_label=ignore_label)
    elif kind == NIFTI:
        pixels = volumes.read_nifti(path, page, like)
    elif kind == DICOM:
        pixels = dicom.read_dicom(path, page, labels=labels)
    else:
        return read_picture(path, labels=labels)
    return finished(pixels, labels=labels)


def _read_npy(path: Path, mmap_mode: Any = None) -> Array:  # noqa: ANN401 -- a literal of NumPy
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            "contains Python objects, not an array (as Cellpose's _seg.npy does): save the array, "
            "np.save(path, np.load(old, allow_pickle=True).item()['masks'])"
        ) from error
    return np.asarray(array) if mmap_mode is None else array
