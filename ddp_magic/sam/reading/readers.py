"""From a file or a PIL image to an array: in the right orientation, with its dtype and channels.

Each format is read by a library that knows it: TIFF by tifffile, NIfTI by nibabel, DICOM by
pydicom, other images by Pillow, and what Pillow would reduce to 8 bits by imagecodecs. A file whose
meaning is not certain is refused: the error names it and says what to do.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from ddp_magic.sam.reading import dicom, volumes
from ddp_magic.sam.reading.channels import labels_of_palette, one_channel, turned, without_alpha
from ddp_magic.sam.reading.volumes import Header, native, require

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
        if not labels and array.ndim == 3 and array.shape[2] not in {1, 3}:
            raise ValueError(f"has shape {array.shape}, but must have (H, W) or (H, W, 3)")
        height, width = array.shape[-2:] if labels else array.shape[:2]  # masks may have N first
        return Header(1, (height, width), array.dtype)
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
        with _opened(path) as file:
            return _decoded(file, labels=labels)
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
        if labels and scale != 1:
            pixels = np.rint(pixels * scale).astype(pixels.dtype)
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
