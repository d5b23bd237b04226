"""TIFF and DICOM files of unusual kinds are read right, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset

from ddp_magic.prelude import SamDataset
from ddp_magic.sam.reading.readers import header, read

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 256, (4, 20, 30), dtype=np.uint8)
GRAY = STACK[0]
LABELS = np.zeros((20, 30), np.uint8)
LABELS[2:9, 3:12], LABELS[11:17, 14:28] = 1, 2


@pytest.mark.parametrize("pages", [(4,), (2, 2)])
def test_pages_that_are_written_one_by_one(tmp_path: Path, pages: tuple[int, ...]) -> None:
    """Each write makes a series of its own in the TIFF, of one page or of several."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for part in STACK.reshape(-1, *pages[1:], 20, 30):
            file.write(part, photometric="minisblack")
    assert header(path).pages == 4
    assert np.array_equal([read(path, n, labels=False) for n in range(4)], STACK)
    imageio.mimwrite(path, list(STACK))
    assert np.array_equal([read(path, n, labels=True) for n in range(4)], STACK)
    kinds: list[tuple[Any, int]] = [(GRAY, 1), (GRAY.astype(np.uint16), 1), (STACK, 1), (GRAY, 3)]
    for other, turn in kinds[1:]:
        with tifffile.TiffWriter(path) as file:
            for pixels, orientation in (kinds[0], (other, turn)):
                tags = [(274, 3, 1, orientation, True)]
                file.write(pixels, photometric="minisblack", extratags=tags)
        with pytest.raises(ValueError, match=r"a\.tif: contains pages of several kinds"):
            header(path)


@pytest.mark.parametrize(
    ("axes", "pages", "fits"),
    [
        ("TZYX", (2, 3), True),
        ("ZTYX", (3, 2), False),
        (None, (2, 3), True),  # without names
        (None, (3, 2), False),
        ("ZYX", (6,), True),
    ],
)
def test_pages_of_a_mask_have_the_order_of_the_image(
    tmp_path: Path, axes: str | None, pages: tuple[int, ...], fits: bool
) -> None:
    """Times and slices may be in another order, where each page has the right size."""
    paths = tmp_path / "a.ome.tif", tmp_path / ("mask.ome.tif" if axes else "mask.tif")
    image, labels = np.zeros((2, 3, 20, 30), np.uint8), np.zeros((*pages, 20, 30), np.uint8)
    tifffile.imwrite(paths[0], image, metadata={"axes": "TZYX"}, photometric="minisblack")
    metadata = {"axes": axes} if axes else {}
    tifffile.imwrite(paths[1], labels, metadata=metadata, photometric="minisblack")
    if fits:
        assert len(SamDataset([paths[0]], [paths[1]])) == 6
    else:
        with pytest.raises(
            ValueError, match=r"a\.ome\.tif has pages along .*'T', 2.*save the mask"
        ):
            SamDataset([paths[0]], [paths[1]])


def test_a_file_of_several_has_its_own_pages_only(tmp_path: Path) -> None:
    """Each file of an OME-TIFF of several describes all, which may be missing."""
    planes = "".join(
        f'<TiffData IFD="0" FirstT="{n}" PlaneCount="1">'
        f'<UUID FileName="{n}.ome.tif">urn:uuid:{n}</UUID></TiffData>'
        for n in range(3)
    )
    for n in range(3):
        pixels = (
            '<Pixels DimensionOrder="XYZCT" Type="uint8" SizeX="30" SizeY="20" SizeZ="1" SizeC="1" '
            f'SizeT="3"><Channel SamplesPerPixel="1"/>{planes}</Pixels>'
        )
        text = f'<OME UUID="urn:uuid:{n}"><Image>{pixels}</Image></OME>'
        path = tmp_path / f"{n}.ome.tif"
        tifffile.imwrite(path, STACK[n], description=text, metadata=None)
        if n == 2:
            with tifffile.TiffFile(path) as file:
                assert file.series[0].shape == (3, 20, 30)
    (tmp_path / "0.ome.tif").unlink()
    for n in (1, 2):
        path = tmp_path / f"{n}.ome.tif"
        assert header(path).pages == 1
        assert np.array_equal(read(path, labels=False), STACK[n])


@pytest.mark.parametrize("page", [0, 1])
def test_labels_in_a_tiff_that_jpeg_has_changed_are_refused(tmp_path: Path, page: int) -> None:
    """Levels of JPEG around one object may look like another one."""
    path, options = tmp_path / "a.tif", {"compression": "jpeg", "photometric": "minisblack"}
    tifffile.imwrite(path, np.stack([LABELS == 1, LABELS == 2]) * np.uint8(9), **options)
    with pytest.raises(ValueError, match=r"a\.tif: is a TIFF with JPEG compression"):
        read(path, page, labels=True)
    read(path, page, labels=False)
    tifffile.imwrite(path, np.stack([LABELS * 0, LABELS * 0]), **options)
    assert not read(path, page, labels=True).any()


def test_each_page_of_a_tiff_has_its_own_palette(tmp_path: Path) -> None:
    """Pillow writes one for each page."""
    colors = RNG.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    pages = [Image.fromarray(each).quantize(8) for each in colors]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for number, page in enumerate(pages):
        found = read(tmp_path / "a.tif", number, labels=False)
        assert np.array_equal(found, np.asarray(page.convert("RGB")))


@pytest.mark.parametrize("shape", [(2,), (4,), (5,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_channel_that_is_not_alpha_is_not_dropped(
    tmp_path: Path, shape: tuple[int], dtype: type, planar: str
) -> None:
    """Such as nuclei and cells, or near infrared, which no tag says to be transparency."""
    pixels = np.tile(LABELS[..., None].astype(dtype), (1, 1, *shape))
    stored = pixels if planar == "contig" else pixels.transpose(2, 0, 1)
    for extra, photometric in ((shape[0] - 1, "minisblack"), (shape[0] - 3, "rgb")):
        if extra > 0:
            tifffile.imwrite(
                tmp_path / "a.tif",
                stored,
                photometric=photometric,
                planarconfig=planar,
                extrasamples=["unspecified"] * extra,
            )
            for labels in (False, True):
                with pytest.raises(ValueError, match=rf"a\.tif: has {shape[0]} channels"):
                    header(tmp_path / "a.tif", labels=labels)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_tiff_where_zero_is_white_is_inverted_or_refused(tmp_path: Path, dtype: type) -> None:
    """Signed and float values have no maximum that is black; those of labels stay."""
    tifffile.imwrite(tmp_path / "a.tif", np.stack([LABELS] * 2).astype(dtype), photometric=0)
    with pytest.raises(ValueError, match=r"a\.tif: is a TIFF of .* where 0 is white"):
        header(tmp_path / "a.tif")
    assert np.array_equal(read(tmp_path / "a.tif", 1, labels=True), LABELS)


@pytest.mark.parametrize("bits", [2, 4])
def test_tiff_of_few_bits(tmp_path: Path, bits: int) -> None:
    """Labels are the numbers in the file; an image has its gray levels, from 0 to 255."""
    pixels = np.arange(4, dtype=np.uint8).repeat(8) % 2**bits  # (32,)
    packed = np.packbits(np.unpackbits(pixels[:, None], axis=1)[:, -bits:]).tobytes()
    tifffile.imwrite(
        tmp_path / "a.tif",
        iter([packed * 20]),
        shape=(20, 32),
        dtype=np.uint8,
        bitspersample=bits,
        photometric="minisblack",
    )
    expected = np.tile(pixels, (20, 1))
    assert np.array_equal(read(tmp_path / "a.tif", labels=True), expected)
    levels = expected * (255 // (2**bits - 1))
    assert np.array_equal(read(tmp_path / "a.tif", labels=False), levels)


def _ct() -> Any:
    return pydicom.dcmread(str(pydicom.data.get_testdata_file("CT_small.dcm")))


def test_an_enhanced_dicom_is_scaled(tmp_path: Path) -> None:
    """Its slope and intercept are in the functional groups that its frames share."""
    data, scale, group = _ct(), Dataset(), Dataset()
    expected = data.pixel_array * 2.0 - 1000
    del data.RescaleSlope, data.RescaleIntercept
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 2, -1000, "HU"
    group.PixelValueTransformationSequence = [scale]
    data.SharedFunctionalGroupsSequence = [group]
    data.save_as(tmp_path / "a.dcm")
    assert np.array_equal(read(tmp_path / "a.dcm", labels=False), expected)


def test_a_dicom_with_a_table_of_values_is_refused(tmp_path: Path) -> None:
    """The error names the file, before its pixels are read."""
    data, table = _ct(), Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 16], [0, 5, 7, 9]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    data.ModalityLUTSequence = [table]
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=r"a\.dcm: has a Modality LUT Sequence"):
        header(tmp_path / "a.dcm")


def test_a_dicom_mask_is_refused(tmp_path: Path) -> None:
    """So is NIfTI for a DICOM image, whose rows dcm2niix turns."""
    _ct().save_as(tmp_path / "image.dcm")
    with pytest.raises(ValueError, match=r"image\.dcm: is a DICOM mask: convert it"):
        SamDataset([np.zeros((128, 128), np.uint8)], [tmp_path / "image.dcm"])
    nibabel.Nifti1Image(np.ones((128, 128), np.uint8), np.eye(4)).to_filename(tmp_path / "m.nii")
    with pytest.raises(ValueError, match=r"image\.dcm and .*m\.nii are DICOM and NIfTI"):
        SamDataset([tmp_path / "image.dcm"], [tmp_path / "m.nii"])


@pytest.mark.parametrize("padding", [-2000, 63536])
def test_the_padding_of_a_ct_does_not_change_its_scale(tmp_path: Path, padding: int) -> None:
    """It is outside the circle that the scanner sees; some writers note its bits unsigned."""
    path = Path(pydicom.data.get_testdata_file("CT_small.dcm"))
    data = pydicom.dcmread(path)
    pixels = data.pixel_array.copy()
    pixels[:20] = -2000
    data.PixelData = pixels.tobytes()
    data[0x00280120] = pydicom.DataElement(0x00280120, "SS" if padding < 0 else "US", padding)
    data.save_as(tmp_path / "a.dcm")
    found, whole = (read(each, labels=False) for each in (tmp_path / "a.dcm", path))
    assert np.array_equal(found[20:], whole[20:])
    assert (found[:20] == whole[20:].min()).all()


def test_a_dicom_of_floats_is_read(tmp_path: Path) -> None:
    """A parametric map has no PixelRepresentation."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.30"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    values = np.random.default_rng(0).random((20, 30), np.float32)
    data.Rows, data.Columns, data.SamplesPerPixel, data.BitsAllocated = 20, 30, 1, 32
    data.PhotometricInterpretation, data.FloatPixelData = "MONOCHROME2", values.tobytes()
    data.save_as(tmp_path / "p.dcm", enforce_file_format=True)
    assert np.array_equal(read(tmp_path / "p.dcm", labels=False), values)
