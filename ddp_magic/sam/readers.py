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
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from ddp_magic.sam import volumes
from ddp_magic.sam.channels import labels_of_palette, one_channel, turned, without_alpha
from ddp_magic.sam.volumes import Header, native, require

Array = NDArray[Any]
T = TypeVar("T")

PICTURES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif")
PICTURES += (".jp2", ".j2k", ".jpx", ".pgm", ".ppm", ".pbm", ".pnm")
FORMATS = {"PNG", "JPEG", "MPO", "BMP", "DIB", "WEBP", "GIF", "JPEG2000", "PPM"}  # of Pillow
TIFF, NIFTI, NUMPY, DICOM = (".tif", ".tiff"), (".nii", ".nii.gz"), (".npy",), (".dcm", ".dicom")


def header(path: Path, *, labels: bool = False) -> Header:
    """Return what a file contains, without decoding its pixels.

    Raises:
        ValueError: The file cannot be read, or its meaning is not certain.
        ImportError: Reading the file needs a package that is not installed.
    """
    return _naming(path, lambda: _header(path, labels=labels))


def read(path: Path, page: int = 0, *, labels: bool, like: Path | None = None) -> Array:
    """Read an image, (H, W) or (H, W, 3), or a label map, (H, W).

    Args:
        path: the file; an .npy file may also contain a stack of masks (N, H, W).
        page: index of the page, slice or frame.
        labels: whether it is a label map; then palette indices are the labels.
        like: for a NIfTI label map, the image whose axes it gets.

    Raises:
        ValueError: The file cannot be read, or its meaning is not certain.
        ImportError: Reading the file needs a package that is not installed.
    """
    return _naming(path, lambda: _read(path, page, labels=labels, like=like))


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
        return volumes.dicom_header(path)
    if kind == NUMPY:
        array = _read_npy(path, "r")
        if not labels and array.ndim == 3 and array.shape[2] not in {1, 3}:
            raise ValueError(f"has shape {array.shape}, but must have (H, W) or (H, W, 3)")
        height, width = array.shape[-2:] if labels else array.shape[:2]  # masks may have N first
        return Header(1, (height, width), array.dtype)
    with _opened(path) as file:
        dtype: Any = {"I": np.int32, "F": np.float32}.get(file.mode, np.uint8)
        if file.format == "JPEG2000":
            dtype = from_pil(file, labels=labels).dtype
        elif _is_deep(file) or (file.mode[:1] == "I" and file.format in {"PNG", "PPM"}):
            dtype = np.uint16
        # Where its EXIF is not at its head, a PNG file would be decoded to find it.
        known = file.format != "PNG" or "exif" in file.info
        turn = _exif_turn(file) if known else 1
        return Header(1, file.size if turn > 4 else file.size[::-1], np.dtype(dtype), turn)


def _read(path: Path, page: int, *, labels: bool, like: Path | None) -> Array:
    kind = kind_of(path)
    if kind == NUMPY:
        return _read_npy(path)
    if kind == TIFF:
        pixels = volumes.read_tiff(path, page, labels=labels)
    elif kind == NIFTI:
        pixels = volumes.read_nifti(path, page, like)
    elif kind == DICOM:
        pixels = volumes.read_dicom(path, page, labels=labels)
    else:
        with _opened(path) as file:
            return from_pil(file, labels=labels)
    return _finished(pixels, labels=labels)


def _finished(pixels: Array, *, labels: bool) -> Array:
    pixels = one_channel(pixels) if labels else without_alpha(pixels)
    return np.ascontiguousarray(pixels, dtype=native(pixels.dtype))


def _read_npy(path: Path, mmap_mode: Any = None) -> Array:  # noqa: ANN401 -- a literal of NumPy
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            "contains Python objects, not an array (as Cellpose's _seg.npy does): save the array, "
            "np.save(path, np.load(old, allow_pickle=True).item()['masks'])"
        ) from error
    return np.asarray(array) if mmap_mode is None else array


# -------------------------------------------------------------------------------------- Pillow


def from_pil(file: Image.Image, *, labels: bool) -> Array:
    """Return the pixels of a PIL image as `read` returns those of a file.

    Raises:
        ValueError: Its meaning is not certain, or Pillow would lose a part of it.
    """
    mode = file.mode
    if _is_deep(file):
        codecs = require("imagecodecs")
        decode = codecs.png_decode if file.format == "PNG" else codecs.jpeg2k_decode
        pixels = decode(_encoded(file))
    elif mode == "P" and labels:
        palette = np.reshape(file.getpalette("RGB") or [], (-1, 3)).astype(np.uint8)
        pixels = labels_of_palette(np.asarray(file), palette)
    else:
        wanted = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
        if mode in {"P", "PA"}:
            wanted = "RGBA" if file.has_transparency_data else "RGB"
        elif mode == "1" and not labels:
            wanted = "L"
        elif mode in {"L", "RGB"} and "transparency" in file.info and not labels:
            wanted = "RGBA"  # one color is transparent
        elif mode in {"CMYK", "YCbCr", "LAB", "HSV", "RGBX"}:
            wanted = "RGB"
        pixels = np.asarray(file if wanted == mode else file.convert(wanted))
        if mode == "I" and file.format in {"PNG", "PPM"}:  # 16 bits
            pixels = pixels.astype(np.uint16)
    if labels and _is_lossy(file) and len(np.unique(pixels)) > 2:
        raise ValueError(
            f"is a lossy {file.format} file, so that labels changed: save mask > 127 as PNG"
        )
    return _finished(turned(pixels, _exif_turn(file)), labels=labels)


def _opened(path: Path) -> Image.Image:
    try:
        file = Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError("not an image that is supported: save it as PNG, TIFF or NIfTI") from error
    if file.format not in FORMATS:
        hint = "name it .tif" if file.format == "TIFF" else "save it as PNG or TIFF"
        raise ValueError(f"has the format {file.format}, which is not supported: {hint}")
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format != "MPO":  # the later frames of MPO are previews
        file.close()
        raise ValueError(f"is an animation of {frames} frames: save each frame as a file")
    return file


def _is_lossy(file: Image.Image) -> bool:
    if file.format == "WEBP":
        path = Path(str(getattr(file, "filename", "")))
        return path.is_file() and b"VP8L" not in path.read_bytes()  # the mark of lossless data
    return file.format in {"JPEG", "MPO"}


def _exif_turn(file: Image.Image) -> int:
    found = file.getexif().get(0x0112, 1)
    return found if found in range(1, 9) else 1


def _is_deep(file: Image.Image) -> bool:
    """Return whether a file, not decoded yet, has or may have more bits than Pillow returns.

    Raises:
        ValueError: It has, and no other library can read it; or Pillow has decoded it already.
    """
    if not isinstance(file, ImageFile.ImageFile):
        return False
    if not file.tile:  # decoded
        path = Path(str(file.filename))
        if file.format in {"PNG", "TIFF"} and file.mode in {"RGB", "RGBA"} and path.is_file():
            with Image.open(path) as again:
                if ";16" in str(again.tile[:1]):
                    raise ValueError("Pillow kept 8 of its 16 bits per color: pass the path")
        return False
    if file.format == "JPEG2000":
        return True  # its 12-bit gray levels would be multiplied by 16, and its colors cut
    codec, arguments = file.tile[0][0], file.tile[0][3]
    deep = ";16" in str(arguments) and file.mode[:1] != "I"
    if file.format == "PPM" and codec == "ppm" and file.mode == "RGB":
        deep = arguments[1] > 255  # type: ignore[index, operator]
    if deep and file.format != "PNG":
        raise ValueError("has 16 bits per color, of which Pillow keeps 8: save it as a .tif file")
    return deep


def _encoded(file: Image.Image) -> bytes:
    """Return the bytes of a file that is not decoded yet, on disk or in memory."""
    path = Path(str(getattr(file, "filename", "")))
    if path.is_file():
        return path.read_bytes()
    stream = file.fp  # type: ignore[attr-defined]
    at = stream.tell()
    stream.seek(0)
    data: bytes = stream.read()
    stream.seek(at)
    return data
