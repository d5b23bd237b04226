"""From a file to an array: in the right orientation, with its dtype and channels.

Each format is read by a library that knows it: TIFF by tifffile, NIfTI by nibabel, DICOM by
pydicom, other images by Pillow, and what Pillow would reduce to 8 bits by imagecodecs. A file whose
meaning is not certain is refused: the error names it and says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ddp_magic.sam.reading import dicom, volumes
from ddp_magic.sam.reading.channels import Array, Header, finished
from ddp_magic.sam.reading.pil import picture_header, read_picture

SUFFIXES = {
    "picture": (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif"),
    "tiff": (".tif", ".tiff"),
    "nifti": (".nii", ".nii.gz"),
    "numpy": (".npy",),
    "dicom": (".dcm", ".dicom"),
}


def kind_of(path: Path) -> str:
    """Return the kind of a file, a key of `SUFFIXES`, or ""; DICOM may have any suffix."""
    for kind, suffixes in SUFFIXES.items():
        if path.name.lower().endswith(suffixes):
            return kind
    with path.open("rb") as file:
        return "dicom" if file.read(132)[128:] == b"DICM" else ""


@contextmanager
def naming(name: Path | str) -> Iterator[None]:
    """Name a file or an image in the errors of a `with` block."""
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except ImportError as error:
        raise ImportError(f"{name}: {error}") from error
    except Exception as error:  # decoders raise what they like for a broken file
        raise ValueError(f"{name}: {error}") from error


def header(path: Path, *, labels: bool = False) -> Header:
    """Return what a file contains, without decoding its pixels.

    Raises:
        ValueError: The file cannot be read, or its meaning is not certain.
        ImportError: Reading the file needs a package that is not installed.
    """
    with naming(path):
        kind = kind_of(path)
        if kind == "tiff":
            return volumes.tiff_header(path, labels=labels)
        if kind == "nifti":
            return volumes.nifti_header(path)
        if kind == "dicom":
            return dicom.dicom_header(path, labels=labels)
        if kind != "numpy":
            return picture_header(path)
        array = read_npy(path, "r")
        shapes = "(H, W) or (N, H, W)" if labels else "(H, W) or (H, W, 3)"
        if array.ndim not in {2, 3} or not (labels or array.shape[2:] in {(), (1,), (3,)}):
            raise ValueError(f"has shape {array.shape}, but must have {shapes}")
        height, width = array.shape[-2:] if labels else array.shape[:2]  # masks may have N first
        return Header(1, (height, width), array.dtype)


def read(path: Path, page: int = 0, *, labels: bool) -> Array:
    """Read an image, (H, W) or (H, W, 3), or a label map, (H, W).

    Args:
        path: the file; an .npy file may also contain a stack of masks (N, H, W).
        page: index of the page, slice or frame.
        labels: whether it is a label map; then palette indices are the labels.

    Raises:
        ValueError: The file cannot be read, or its meaning is not certain.
        ImportError: Reading the file needs a package that is not installed.
    """
    with naming(path):
        kind = kind_of(path)
        if kind == "numpy":
            return np.asarray(read_npy(path))
        if kind == "tiff":
            return finished(volumes.read_tiff(path, page, labels=labels), labels=labels)
        if kind == "nifti":
            return finished(volumes.read_nifti(path, page, labels=labels), labels=labels)
        if kind == "dicom":
            return finished(dicom.read_dicom(path, page), labels=labels)
        return read_picture(path, labels=labels)


def read_npy(path: Path, mmap_mode: Any = None) -> Array:  # noqa: ANN401 -- a literal of NumPy
    """Read an .npy file.

    Raises:
        ValueError: It contains Python objects, or several arrays.
    """
    try:
        array: Array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except ValueError as error:
        if "pickle" not in str(error) and "Python objects" not in str(error):
            raise
        raise ValueError(
            "contains Python objects, not an array (as Cellpose's _seg.npy does): save the array, "
            "np.save(path, np.load(old, allow_pickle=True).item()['masks'])"
        ) from error
    if not hasattr(array, "ndim"):
        raise ValueError("is an .npz archive: pass one of its arrays, np.load(path)[name]")
    return array
