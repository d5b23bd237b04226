"""Images that Pillow opens: files, and its own objects."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ddp_magic.sam.reading.channels import (
    Array,
    Header,
    check_clear,
    finished,
    labels_of_palette,
    require,
    turned,
)

FORMATS = {"PNG", "JPEG", "MPO", "BMP", "DIB", "WEBP", "GIF"}  # of Pillow
DEEP = "is decoded to 8 bits, which changed the pixels: pass the path"


def picture_header(path: Path) -> Header:
    """Return the header of an image."""
    with _opened(path) as file:
        dtype: Any = {"I": np.int32, "F": np.float32}.get(file.mode, np.uint8)
        if _bits(file)[0] or (file.mode[:1] == "I" and file.format == "PNG"):
            dtype = np.uint16
        turn = turn_of(file)
        return Header(1, file.size if turn > 4 else file.size[::-1], np.dtype(dtype), turn)


def read_picture(path: Path, *, labels: bool) -> Array:
    """Read an image, (H, W) or (H, W, 3), or a label map, (H, W)."""
    with _opened(path) as file:
        return _decoded(file, labels=labels)


def from_pil(file: Image.Image, *, labels: bool) -> Array:
    """Return the pixels of a PIL image as `read` returns those of a file.

    Raises:
        ValueError: Its meaning is not certain, or Pillow would lose a part of it.
    """
    if file.format == "TIFF":
        raise ValueError("is a TIFF, of which Pillow changes the pixels of some: pass the path")
    if is_encoded(file):  # a copy, since decoding would lose bits for the next reading
        with _checked(Image.open(io.BytesIO(_encoded(file)))) as own:
            return _decoded(own, labels=labels)
    path = Path(str(getattr(file, "filename", "")))
    if file.format == "PNG" and path.is_file():
        with Image.open(path) as own:
            deep, scale = _bits(own)
        if deep or (labels and scale > 1):
            raise ValueError(DEEP)
    return _decoded(file, labels=labels)


def is_encoded(file: Image.Image) -> TypeGuard[ImageFile.ImageFile]:
    """Return whether Pillow has opened a file, but not decoded it."""
    return isinstance(file, ImageFile.ImageFile) and bool(file.tile)


def turn_of(file: Image.Image) -> int:
    """Return the orientation in the metadata of a PIL image, which is applied; 1: none."""
    if file.format == "PNG" and is_encoded(file):
        # Pillow would decode each PNG, since it may have metadata after its pixels.
        data = _encoded(file)
        if not any(mark in data for mark in (b"eXIf", b"XML:", b"Raw profile")):
            return 1
        with Image.open(io.BytesIO(data)) as own:
            found = own.getexif().get(0x0112, 1)
    else:
        found = file.getexif().get(0x0112, 1)
    return found if found in range(1, 9) else 1


def _decoded(file: Image.Image, *, labels: bool) -> Array:
    mode, (deep, scale), turn = file.mode, _bits(file), turn_of(file)
    if deep:
        pixels = require("imagecodecs").png_decode(_encoded(file))
    elif mode == "P" and labels:
        palette = np.reshape(file.getpalette("RGB") or [], (-1, 3)).astype(np.uint8)
        pixels = labels_of_palette(np.asarray(file), palette)
    else:
        wanted = _wanted_mode(file, labels=labels)
        pixels = np.asarray(file if wanted == mode else file.convert(wanted))
        if mode[:1] == "I" and "transparency" in file.info and not labels:
            check_clear((pixels == file.info["transparency"]).mean())
        if mode == "I" and file.format == "PNG":  # 16 bits
            pixels = pixels.astype(np.uint16)
        pixels = pixels // np.uint8(scale) if labels and scale > 1 else pixels
    if labels and len(np.unique(pixels)) > 2 and _is_lossy(file):
        raise ValueError(
            f"is a lossy {file.format} file, so that labels changed: save mask > 127 as PNG"
        )
    return finished(turned(pixels, turn), labels=labels)


def _wanted_mode(file: Image.Image, *, labels: bool) -> str:
    """Return the mode of Pillow whose pixels are gray levels, colors or labels, and alpha."""
    mode = file.mode
    if mode in {"P", "PA"}:
        return "RGBA" if file.has_transparency_data else "RGB"
    if mode == "1" and not labels:
        return "L"
    if mode in {"L", "RGB"} and "transparency" in file.info and not labels:
        return "RGBA"  # one color is transparent
    if mode in {"CMYK", "YCbCr", "LAB", "HSV", "RGBX"}:
        return "RGB"
    return {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)


def _opened(path: Path) -> Image.Image:
    try:
        return _checked(Image.open(path))
    except UnidentifiedImageError as error:
        raise ValueError("not an image that is supported: save it as PNG, TIFF or NIfTI") from error


def _checked(file: Image.Image) -> Image.Image:
    """Return a file that is one image of a known format.

    Raises:
        ValueError: It is not.
    """
    if file.format not in FORMATS:
        hint = "name it .tif" if file.format == "TIFF" else "save it as PNG or TIFF"
        raise ValueError(f"has the format {file.format}, which is not supported: {hint}")
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format != "MPO":  # the later frames of MPO are previews
        raise ValueError(f"is an animation of {frames} frames: save each frame as a file")
    return file


def _is_lossy(file: Image.Image) -> bool:
    if file.format == "WEBP":
        path = Path(str(getattr(file, "filename", "")))
        return path.is_file() and b"VP8L" not in path.read_bytes()  # the mark of lossless data
    return file.format in {"JPEG", "MPO"}


def _bits(file: Image.Image) -> tuple[bool, int]:
    """Return whether a PNG has more bits than Pillow returns, and the factor it stretches by."""
    arguments = str(file.tile[0][3]) if is_encoded(file) else ""
    return ";16" in arguments and file.mode[:1] != "I", {"L;2": 85, "L;4": 17}.get(arguments, 1)


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
