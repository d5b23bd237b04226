"""Files that libraries have written are read as they are shown, or refused by name."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image, ImageOps

from ddp_magic.sam.data.dataset import SamDataset
from ddp_magic.sam.reading.files import to_array
from ddp_magic.sam.reading.pil import from_pil
from ddp_magic.sam.reading.readers import header, read

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GRAY, DEEP = RGB[..., 0], RNG.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
BINARY = GRAY > 127
LABELS = np.zeros((20, 30), np.uint8)
LABELS[2:9, 3:12], LABELS[11:17, 14:28] = 1, 2


def image(path: Path, page: int = 0) -> Any:
    """Read an image, and check that its header says the same."""
    found, head = read(path, page, labels=False), header(path)
    assert (found.shape[:2], found.dtype) == (head.size, head.dtype)
    return found


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    """The orientation of EXIF is applied to files and to PIL images, loaded or not."""
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(path, exif=exif, lossless=True)
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    assert np.array_equal(image(path), expected)
    for load in (False, True):
        with Image.open(path) as file:
            if load and suffix != "tif":
                file.load()
            assert np.array_equal(to_array(file), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_kept(tmp_path: Path, suffix: str, channels: int) -> None:
    """Gray levels and colors keep their low byte."""
    path, deep = tmp_path / f"a.{suffix}", DEEP[..., 0].copy() if channels == 1 else DEEP
    if suffix == "png":
        path.write_bytes(imagecodecs.png_encode(deep))
    else:
        tifffile.imwrite(path, deep, photometric="rgb" if channels == 3 else "minisblack")
    assert np.array_equal(image(path), deep)


def test_sixteen_bits_of_pil_images_are_kept_or_missed(tmp_path: Path) -> None:
    """A PIL image of a file or of bytes has all bits; one that is decoded has lost them."""
    data = imagecodecs.png_encode(DEEP)
    (tmp_path / "a.png").write_bytes(data)
    tifffile.imwrite(tmp_path / "a.tif", DEEP, photometric="rgb")
    for source in (io.BytesIO(data), tmp_path / "a.png"):
        with Image.open(source) as file:
            assert np.array_equal(from_pil(file, labels=False), DEEP)
    for name in ("a.png", "a.tif"):
        with Image.open(tmp_path / name) as file:
            assert np.array_equal(to_array(file), DEEP)
            file.load()
            with pytest.raises(ValueError, match="pass the path"):
                to_array(file)


Z = RNG.integers(0, 99, (4, 3, 20, 30)).astype(np.uint8)
GRAYS = np.tile(np.arange(256) * 257, (3, 1)).astype(np.uint16)
OPAQUE = np.dstack([RGB, np.full_like(GRAY, 255)])
SIGNED = (DEEP[..., 0].astype(int) - 32768).astype(np.int16)


@pytest.mark.parametrize(
    ("pixels", "options", "expected", "pages"),
    [
        (DEEP.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, DEEP, 1),
        (DEEP, {"photometric": "rgb", "compression": "lzw"}, DEEP, 1),
        (RGB, {"photometric": "rgb", "compression": "deflate", "predictor": True}, RGB, 1),
        (GRAY, {"bigtiff": True}, GRAY, 1),
        (SIGNED, {"byteorder": ">"}, SIGNED, 1),
        (Z, {"imagej": True, "metadata": {"axes": "ZCYX"}}, Z[3].transpose(1, 2, 0), 4),
        (Z, {"imagej": True, "metadata": {"axes": "TZYX"}}, Z[3, 2], 12),
        (Z, {"ome": True, "metadata": {"axes": "TCYX"}}, Z[3].transpose(1, 2, 0), 4),
        (Z[:, :1], {"ome": True, "metadata": {"axes": "ZCYX"}}, Z[3, 0], 4),
        (GRAY, {"photometric": "miniswhite"}, 255 - GRAY, 1),
        (GRAY, {"photometric": "palette", "colormap": GRAYS}, RGB[..., [0, 0, 0]], 1),
        (GRAY, {"imagej": True, "metadata": {"LUTs": [np.zeros((3, 256), np.uint8)]}}, GRAY, 1),
        (BINARY, {"photometric": "minisblack"}, BINARY * np.uint8(255), 1),
        (OPAQUE, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, RGB, 1),
    ],
)
def test_tiff(tmp_path: Path, pixels: Any, options: Any, expected: Any, pages: int) -> None:
    """Planar and compressed colors, stacks of ImageJ and OME, inverted gray levels, palettes."""
    path = tmp_path / "a.TIF"
    tifffile.imwrite(path, pixels, **options)
    assert header(path).pages == pages
    assert np.array_equal(image(path, pages - 1), expected)


def test_previews_in_a_tiff_are_no_images(tmp_path: Path) -> None:
    """The levels of a pyramid, and a thumbnail, are left out."""
    big = np.tile(RGB, (10, 10, 1))
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(big, photometric="rgb", subifds=1, tile=(64, 64))
        file.write(big[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(big[::4, ::4], photometric="rgb", subfiletype=1)
    assert header(tmp_path / "a.tif").pages == 1
    assert np.array_equal(image(tmp_path / "a.tif"), big)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_modes_of_pillow(tmp_path: Path, mode: str) -> None:
    """Every mode is read as Pillow shows it, from a file, and as a PIL image."""
    made = Image.fromarray(DEEP[..., 0]) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    path = tmp_path / {"CMYK": "a.jpg", "F": "a.tif"}.get(mode, "a.png")
    made.save(path, quality=100)
    with Image.open(path) as file:
        gray = mode in {"1", "L", "LA"}
        shown = np.asarray(file if mode in {"F", "I;16"} else file.convert("L" if gray else "RGB"))
    with Image.open(path) as file:
        assert np.array_equal(to_array(file), shown)
    assert np.array_equal(image(path), shown)
    if mode != "CMYK":
        assert np.array_equal(from_pil(made, labels=False), shown)


def test_labels_are_the_same_in_every_format(tmp_path: Path) -> None:
    """A label map as PNG (gray, RGB, palette, alpha), TIFF, GIF and PIL image."""
    palette = Image.fromarray(LABELS).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    made = {
        "gray.png": Image.fromarray(LABELS),
        "rgb.png": Image.fromarray(np.dstack([LABELS] * 3)),
        "palette.png": palette,
        "palette.tif": palette,
        "palette.gif": palette,
        "transparent.png": Image.fromarray(np.dstack([LABELS, (LABELS > 0) * np.uint8(255)])),
    }
    for name, each in made.items():
        each.save(tmp_path / name)
        assert np.array_equal(read(tmp_path / name, labels=True), LABELS), name
        assert np.array_equal(from_pil(each, labels=True), LABELS), name
    for color in (0, 255):  # a cut-out
        mask = np.dstack([np.full_like(LABELS, color)] * 3 + [(LABELS > 0) * np.uint8(255)])
        Image.fromarray(mask).save(tmp_path / "alpha.png")
        assert np.array_equal(read(tmp_path / "alpha.png", labels=True), LABELS > 0)
        mask[..., 3] //= 255  # 1 is the object, as in a label map
        Image.fromarray(mask).save(tmp_path / "alpha.png")
        assert np.array_equal(read(tmp_path / "alpha.png", labels=True), LABELS > 0)
    inverted = Image.fromarray((LABELS == 0).astype(np.uint8)).convert("P")
    inverted.putpalette([255, 255, 255, 0, 0, 0])  # black is the background, but not index 0
    inverted.save(tmp_path / "inverted.png")
    assert np.array_equal(read(tmp_path / "inverted.png", labels=True) != 0, LABELS > 0)


def _png(pixels: Any, **options: Any) -> Callable[[Path], None]:
    made = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lambda path: made.save(path, **options)


def _tiff(pixels: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, pixels, **options)


def _bytes(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


COLORS = Image.fromarray(RGB)
PPM = b"P6 30 20 65535\n" + DEEP.astype(">u2").tobytes()
SEVERAL = {"save_all": True, "append_images": [COLORS.crop((0, 0, 30, 9))]}
FOUR = nibabel.Nifti1Image(np.zeros((4, 5, 6, 2)), np.eye(4))

# The name of a file, how it is written, and the error; the name of a mask starts with "mask".
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "transparent.png": (_png(np.dstack([RGB, GRAY])), "transparent in 99"),
    "palette.png": (_png(COLORS.quantize(9), transparency=3), "transparent"),
    "animation.gif": (_png(COLORS, save_all=True, append_images=[COLORS.rotate(180)]), "2 frames"),
    "animation.webp": (_png(COLORS, save_all=True, append_images=[COLORS.rotate(9)]), "2 frames"),
    "truncated.png": (_bytes(imagecodecs.png_encode(DEEP)[:300]), "too small"),
    "empty.png": (_bytes(b""), "not an image"),
    "colors.ppm": (_bytes(PPM), "format PPM"),
    "channels.tif": (_tiff(Z[:, :2], imagej=True, metadata={"axes": "ZCYX"}), "axes ZCYX"),
    "columns.tif": (_tiff(DEEP, photometric="minisblack"), "photometric='rgb'"),
    "cmyk.tif": (_png(COLORS.convert("CMYK")), "has 4 channels"),
    "lab.tif": (_png(COLORS.convert("LAB")), "CIELAB"),
    "colors.jp2": (_png(COLORS), "format JPEG2000"),
    "sizes.tif": (_png(COLORS, **SEVERAL), "several kinds"),
    "fake.tif": (_bytes(imagecodecs.png_encode(RGB)), "not a TIFF"),
    "four.nii": (lambda path: nibabel.save(FOUR, path), "shape"),
    "mask of colors.png": (_png(RGB), "colors, not labels"),
    "mask in alpha.png": (_png(np.dstack([GRAY, 255 - GRAY])), "different masks"),
    "mask, labels in alpha.png": (_png(np.dstack([LABELS * 0, LABELS])), "3 levels in its alpha"),
    "mask of a palette.png": (_png(COLORS.quantize(9)), "background is uncertain"),
    "mask, white.tif": (_tiff(BINARY * np.uint8(255), photometric="miniswhite"), "0 is white"),
    "mask.jpg": (_png(Image.fromarray(LABELS).resize((60, 40))), "JPEG"),
    "mask.webp": (_png(Image.fromarray(LABELS * 100), quality=80), "lossy WEBP"),
    "tiff.png": (lambda path: tifffile.imwrite(path, DEEP, photometric="rgb"), "name it .tif"),
    "other.tga": (_png(COLORS), "format TGA"),
    "empty.npy": (_bytes(b""), "No data left"),
    "mask.npy": (lambda path: np.save(path, {"masks": LABELS}, allow_pickle=True), "Cellpose"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_uncertain_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    """A file that might mean something else is refused when its header or pixels are read."""
    write, message = REFUSED[name]
    path, labels = tmp_path / name, name.startswith("mask")
    write(path)
    with pytest.raises(ValueError, match=message) as caught:
        header(path, labels=labels) and read(path, labels=labels)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("black", [0, 9])
def test_the_error_for_a_mask_of_colors_says_how_to_number_them(tmp_path: Path, black: int) -> None:
    """Also without a pixel of the background, and with alpha: COCO's panoptic PNG, BBBC039."""
    ids = np.where(LABELS == 0, black, LABELS + np.int32(300))
    rgb = np.stack([ids & 255, ids >> 8, ids * 0, ids * 0 + 255], -1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="black is the background") as caught:
        read(tmp_path / "a.png", labels=True)
    (line,) = re.findall("pass (rgb.*), in", str(caught.value))
    found = eval(line, {"rgb": rgb})
    assert np.array_equal(found == 0, ids == 0)
    assert len(np.unique(np.stack([ids, found]).reshape(2, -1), axis=1).T) == len(np.unique(ids))


def test_nifti_is_scaled_as_its_header_says(tmp_path: Path) -> None:
    """A compressed volume with a slope, in any byte order, has float values."""
    volume = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    volume.header.set_slope_inter(2.5, -10)
    nibabel.save(volume, tmp_path / "A.NII.GZ")
    assert header(tmp_path / "A.NII.GZ").pages == 5
    expected = nibabel.load(tmp_path / "A.NII.GZ").get_fdata()
    assert np.allclose(image(tmp_path / "A.NII.GZ", 2), expected[..., 2].T)


def test_a_transparent_gray_level_of_16_bits_is_refused(tmp_path: Path) -> None:
    """As one of 8 bits is; in a label map, it is the background that a viewer hides."""
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    chunk = b"tRNS" + (500).to_bytes(2, "big")
    data, at = path.read_bytes(), path.read_bytes().index(b"IDAT") - 4
    length, check = (2).to_bytes(4, "big"), zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(data[:at] + length + chunk + check + data[at:])
    with pytest.raises(ValueError, match=r"a\.png: is transparent in 0\.2% of its pixels"):
        read(path, labels=False)
    assert np.array_equal(read(path, labels=True), pixels)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4, 5)])
def test_an_array_that_is_no_picture_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """The error says which shapes are."""
    np.save(tmp_path / "a.npy", np.zeros(shape))
    for labels in (True, False):
        with pytest.raises(ValueError, match=r"a\.npy: has shape .*must have \(H, W\)"):
            header(tmp_path / "a.npy", labels=labels)


@pytest.mark.parametrize("name", ["a.zarr", "images"])
def test_an_array_of_zarr_must_be_opened(tmp_path: Path, name: str) -> None:
    """Whatever its folder is called, and also in a list."""
    zarr.create_array(tmp_path / name, data=np.zeros((1, 20, 30), np.uint8))
    for images in (tmp_path / name, [tmp_path / name]):
        with pytest.raises(ValueError, match=r"open it and pass the array: zarr\.open_array"):
            SamDataset(images, np.zeros((1, 20, 30), np.uint8))
    np.savez(tmp_path / "a.npz", a=np.zeros((20, 30)))
    with pytest.raises(ValueError, match=r"a\.npz: open it .*numpy\.load"):
        SamDataset(np.zeros((1, 20, 30), np.uint8), [tmp_path / "a.npz"])
