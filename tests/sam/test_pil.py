"""What Pillow would lose is kept or refused: bits, channels, and metadata in unusual places."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps, PngImagePlugin

from ddp_magic.prelude import SamDataset
from ddp_magic.sam.reading.pil import from_pil
from ddp_magic.sam.reading.readers import header, read

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
LABELS = np.zeros((20, 30), np.uint8)
LABELS[2:9, 3:12], LABELS[11:17, 14:28] = 1, 3
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(pixels: Any, bits: int) -> bytes:
    """Return a gray PNG of 2 or 4 bits per pixel."""
    each = np.unpackbits(pixels[..., None], axis=2)[..., -bits:].reshape(len(pixels), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(each, axis=1))
    size = struct.pack(">IIBBBBB", *pixels.shape[::-1], bits, 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", size) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


FEW = {
    "2 bits.png": (_png(LABELS, 2), 85),
    "4 bits.png": (_png(LABELS, 4), 17),
}


@pytest.mark.parametrize("name", FEW)
def test_labels_in_few_bits_are_the_numbers_in_the_file(tmp_path: Path, name: str) -> None:
    """Pillow stretches them to 255 or 65535, as is right for images only."""
    path, (data, factor) = tmp_path / name, FEW[name]
    path.write_bytes(data)
    assert np.array_equal(read(path, labels=True), LABELS)
    assert np.array_equal(read(path, labels=False), LABELS * factor)
    for source in (path, io.BytesIO(data)):
        with Image.open(source) as file:
            for _ in range(2):
                assert np.array_equal(from_pil(file, labels=True), LABELS)
    with Image.open(path) as file:
        file.load()
        with pytest.raises(ValueError, match="pass the path"):
            SamDataset([RGB], [file])


def test_sixteen_bits_of_a_pil_image_are_kept_each_time() -> None:
    """Images from bytes, as data sets of Hugging Face are, stay as they were opened."""
    deep = RNG.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    files = [Image.open(io.BytesIO(imagecodecs.png_encode(deep))) for _ in range(2)]
    data = SamDataset(files, [LABELS] * 2)
    for _ in range(2):
        assert np.array_equal(data.images[0], deep)
        assert data[1]["image"].max() == 255
    assert np.array_equal(pickle.loads(pickle.dumps(data)).images[1], deep)  # in a worker


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize(
    ("pixels", "options", "labels"),
    [
        (np.dstack([LABELS] * 2), {"photometric": "minisblack", "planarconfig": "contig"}, False),
        (np.dstack([RGB, LABELS]), {"photometric": "rgb", "extrasamples": [0]}, False),
        (RGB.astype(np.uint16), {"photometric": "rgb"}, False),
        (LABELS, {"photometric": "miniswhite"}, True),
        (LABELS.astype(np.uint16), {"photometric": "miniswhite"}, False),
    ],
)
def test_a_tiff_in_memory_that_pillow_changes_is_refused(
    pixels: Any, options: Any, labels: bool, load: bool
) -> None:
    """It drops channels and bits, and inverts labels."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    with Image.open(stream) as file:
        if load:
            file.load()
        pair = ([RGB], [file]) if labels else ([file], [LABELS])
        with pytest.raises(ValueError, match="pass the path"):
            SamDataset(*pair)


def _turned_png(where: str) -> bytes:
    """Return a PNG whose orientation 6 is in EXIF or XMP, before or after its pixels."""
    stream, exif, info = io.BytesIO(), Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    if where == "XMP":
        info.add_itxt("XML:com.adobe.xmp", XMP)
    Image.fromarray(RGB).save(stream, "PNG", pnginfo=info)
    data, plain = stream.getvalue(), exif.tobytes().removeprefix(b"Exif\0\0")
    profile = f"\nexif\n{len(plain) + 6:8}\n{(b'Exif' + bytes(2) + plain).hex()}\n".encode()
    late = {
        "late XMP": _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode()),
        "late EXIF": _chunk(b"tEXt", b"Comment\0none") + _chunk(b"eXIf", plain),
        "late profile": _chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
    }.get(where, b"")
    return data[:-12] + late + data[-12:]


@pytest.mark.parametrize("where", ["XMP", "late XMP", "late EXIF", "late profile"])
def test_the_orientation_of_a_png_is_in_its_header(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mask of the turned image fits, and one of the other is refused before training."""
    path, data = tmp_path / "a.png", _turned_png(where)
    path.write_bytes(data)
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    assert header(path).size == expected.shape[:2] == (30, 20)
    Image.fromarray(LABELS.T).save(tmp_path / "turned.png")
    Image.fromarray(LABELS).save(tmp_path / "plain.png")
    with Image.open(io.BytesIO(data)) as memory:
        for image in (path, memory):
            for mask in (tmp_path / "turned.png", LABELS.T):
                found = SamDataset([image], [mask])[0]["image"]
                assert np.array_equal(found.permute(1, 2, 0), expected)
                assert "1 images are turned as their metadata says" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"a\.png\) has shape \(30, 20\), .*\(transposed"):
        SamDataset([path], [tmp_path / "plain.png"])
    assert "1 images are turned as their metadata says" in capsys.readouterr().out
    memory = Image.open(io.BytesIO(data))
    with pytest.raises(ValueError, match=r"but its mask 0 \(.*plain\.png\) has \(20, 30\)"):
        SamDataset([memory], [tmp_path / "plain.png"])


def test_masks_that_are_not_turned_are_said_for_pil_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pillow keeps the metadata when it converts an image."""
    exif = Image.Exif()
    exif[0x0112] = 3
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "JPEG", exif=exif)
    with Image.open(stream) as file:
        image = file.convert("RGB")
    SamDataset([image], [LABELS])
    assert "compare image 0 with its mask" in capsys.readouterr().out
    SamDataset([image], [image.convert("1").convert("L")])
    SamDataset([ImageOps.exif_transpose(image)], [LABELS])
    assert "metadata" not in capsys.readouterr().out
