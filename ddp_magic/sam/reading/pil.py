"""Images that Pillow opens: files, and its own objects."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ddp_magic.sam.reading.channels import (
    Array,
    check_clear,
    finished,
    labels_of_palette,
    turned,
)
from ddp_magic.sam.reading.volumes import Header, require

FORMATS = {"PNG", "JPEG", "MPO", "BMP", "DIB", "WEBP", "GIF", "JPEG2000", "PPM"}  # of Pillow


def picture_header(path: Path, *, labels: bool) -> Header:
    """Return the header of an image."""
    with _opened(path) as file:
        dtype: Any = {"I": np.int32, "F": np.float32}.get(file.mode, np.uint8)
        if file.format == "JPEG2000":
            dtype = _decoded(file, labels=labels).dtype
        elif _depth(file, labels=labels)[0] or (
            file.mode[:1] == "I" and file.format in {"PNG", "PPM"}
        ):
            dtype = np.uint16
        turn = _exif_turn(file)
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
    with _own(file) as own:
        return _decoded(own, labels=labels)


def turn_of(file: Image.Image) -> int:
    """Return the orientation in the metadata of a PIL image, which `from_pil` applies; 1: none."""
    with _own(file) as own:
        return _exif_turn(own)


def _is_encoded(file: Image.Image) -> TypeGuard[ImageFile.ImageFile]:
    """Return whether Pillow has opened a file, but not decoded it."""
    return isinstance(file, ImageFile.ImageFile) and bool(file.tile)


@contextmanager
def _own(file: Image.Image) -> Iterator[Image.Image]:
    """Open a file that is not decoded again, since it would lose bits for the next reading."""
    if _is_encoded(file):
        with Image.open(io.BytesIO(_encoded(file))) as own:
            own.seek(file.tell())
            yield own
    else:
        yield file


def _decoded(file: Image.Image, *, labels: bool) -> Array:
    mode, (deep, scale) = file.mode, _depth(file, labels=labels)
    if deep:
        codecs = require("imagecodecs")
        decode = codecs.png_decode if file.format == "PNG" else codecs.jpeg2k_decode
        pixels = decode(_encoded(file))
    elif mode == "P" and labels:
        palette = np.reshape(file.getpalette("RGB") or [], (-1, 3)).astype(np.uint8)
        pixels = labels_of_palette(np.asarray(file), palette)
    else:
        wanted = _wanted_mode(file, labels=labels)
        pixels = np.asarray(file if wanted == mode else file.convert(wanted))
        if mode[:1] == "I" and "transparency" in file.info and not labels:
            check_clear((pixels == file.info["transparency"]).mean())
        if mode == "I" and file.format in {"PNG", "PPM"}:  # 16 bits
            pixels = pixels.astype(np.uint16)
        if labels and scale != 1:
            pixels = np.rint(pixels * scale).astype(pixels.dtype)
    if labels and _is_lossy(file) and len(np.unique(pixels)) > 2:
        raise ValueError(
            f"is a lossy {file.format} file, so that labels changed: save mask > 127 as PNG"
        )
    return finished(turned(pixels, _exif_turn(file)), labels=labels)


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
    # Pillow would decode each PNG, since it may have metadata after its pixels.
    known = file.format != "PNG" or not _is_encoded(file) or _has_late_metadata(file)
    found = (file.getexif() if known else Image.Image.getexif(file)).get(0x0112, 1)
    return found if found in range(1, 9) else 1


def _has_late_metadata(file: Any) -> bool:  # noqa: ANN401 -- a PngImageFile
    """Return whether a PNG has EXIF or XMP after its pixels."""
    stream, start = file.fp, file.fp.tell()
    late, found, at = False, False, stream.seek(8)
    while not found and len(chunk := stream.read(32)) >= 8:
        kind, text = chunk[4:8], chunk[8:]
        late = late or kind == b"IDAT"
        found = late and (kind == b"eXIf" or text.startswith((b"XML:", b"Raw profile")))
        at = stream.seek(at + 12 + int.from_bytes(chunk[:4], "big"))
    stream.seek(start)
    return found


def _depth(file: Image.Image, *, labels: bool) -> tuple[bool, float]:
    """Return what `_stored` does, or (False, 1) for pixels that decoding has not changed."""
    if file.format == "TIFF":
        tags = file.tag_v2  # type: ignore[attr-defined]
        bits, white = set(tags.get(258, (1,))), tags.get(262) == 0
        lost = 0 in tags.get(338, ()) or (16 in bits and (white or file.mode in {"RGB", "RGBA"}))
        few = file.mode == "L" and bits & {2, 4}
        if lost or (labels and (white or few)):
            raise ValueError("is a TIFF of which Pillow changes the pixels: pass the path")
    if _is_encoded(file):
        return _stored(file)
    path = Path(str(getattr(file, "filename", "")))
    if file.format in {"PNG", "PPM"} and path.is_file():
        with Image.open(path) as other:
            deep, scale = _stored(other)
        if deep or (labels and scale != 1):
            raise ValueError("is decoded to 8 bits, which changed the pixels: pass the path")
    return False, 1


def _stored(file: Any) -> tuple[bool, float]:  # noqa: ANN401 -- an ImageFile
    """Return whether a file has more bits than Pillow returns, and the scale of its numbers.

    The scale is the factor from what Pillow returns, 0 to 255, to a file of 0 to 15, for example.

    Raises:
        ValueError: It has more bits, and no other library can read it.
    """
    codec, arguments = file.tile[0][0], file.tile[0][3]
    deep, scale = ";16" in str(arguments) and file.mode[:1] != "I", 1.0
    if codec.startswith("ppm") and isinstance(arguments, tuple):  # (mode, maximum)
        deep = arguments[1] > 255 and file.mode == "RGB"
        scale = arguments[1] / (65535 if file.mode == "I" else 255)
    if deep and file.format != "PNG":
        raise ValueError("has 16 bits per color, of which Pillow keeps 8: save it as a .tif file")
    scale = {"L;2": 1 / 85, "L;4": 1 / 17}.get(str(arguments), scale)
    # The 12-bit gray levels of JPEG 2000 would be multiplied by 16, and its colors cut.
    return deep or file.format == "JPEG2000", scale


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
