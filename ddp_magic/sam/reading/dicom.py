"""DICOM files, by pydicom."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from ddp_magic.sam.reading.channels import Array, filled
from ddp_magic.sam.reading.volumes import Foreign, Header, require


def dicom_header(path: Path) -> Header:
    """Return the header of a DICOM file, whose frames are images.

    Raises:
        ValueError: It has no image, or one of colors by palette.
    """
    data = require("pydicom", "dicom").dcmread(path, stop_before_pixels=True)
    if data.get("SOPClassUID") == "1.2.840.10008.5.1.4.1.1.66.4":
        raise ValueError("is a DICOM segmentation: convert it to NIfTI, for example with dcmqi")
    if "Rows" not in data or "Columns" not in data:
        raise ValueError("is a DICOM file without an image")
    if data.PhotometricInterpretation == "PALETTE COLOR":
        raise ValueError("is a DICOM image with a palette: save it as RGB")
    if data.get("ModalityLUTSequence"):
        raise ValueError(
            "has a Modality LUT Sequence: pass pydicom.pixels.apply_modality_lut(pixels, ds)"
        )
    each = data.get("PerFrameFunctionalGroupsSequence", [])
    if any("PixelValueTransformationSequence" in frame for frame in each):
        raise ValueError("scales each frame in another way: convert it to NIfTI with dcm2niix")
    kind = np.float32 if data.SamplesPerPixel == 1 else np.dtype(f"u{data.BitsAllocated // 8}")
    pages = int(data.get("NumberOfFrames", 1) or 1)
    return Header(pages, (int(data.Rows), int(data.Columns)), np.dtype(kind))


def _padding(data: Foreign) -> tuple[int, int] | None:
    """Return the lowest and the highest value of pixels that only fill the frame, if declared."""
    ends = [data.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None or data.SamplesPerPixel > 1:
        return None
    values = [int(each) for each in ends if each is not None]
    if data.PixelRepresentation:  # writers note -2000 as the 63536 of the same bits
        values = [each - (each >= 2**15) * 2**16 for each in values]
    return min(values), max(values)


def read_dicom(path: Path, number: int, *, labels: bool) -> Array:
    """Read a frame, (H, W) float32, in Hounsfield units for CT, or (H, W, 3)."""
    return np.asarray(_dicom_frames(path, path.stat().st_mtime_ns, labels)[number])


@lru_cache(maxsize=2)  # an image and its masks
def _dicom_frames(path: Path, _mtime_ns: int, labels: bool) -> Array:
    """Read all frames of a DICOM file."""
    head = dicom_header(path)
    data = require("pydicom", "dicom").dcmread(path)
    library = require("pydicom.pixels", "dicom")
    pixels = library.pixel_array(data)  # YCbCr becomes RGB
    if data.SamplesPerPixel > 1:
        return np.asarray(pixels.reshape(head.pages, *head.size, 3))
    frames, padding = pixels.reshape(head.pages, *head.size).astype(np.float64), _padding(data)
    if padding and not labels:
        frames[(frames >= padding[0]) & (frames <= padding[1])] = np.nan
    if data.PhotometricInterpretation == "MONOCHROME1" and not labels:  # 0 is white
        frames = (-1 if data.PixelRepresentation else 2**data.BitsStored - 1) - frames
    for group in data.get("SharedFunctionalGroupsSequence", []):
        for scale in group.get("PixelValueTransformationSequence", []):
            data.RescaleSlope, data.RescaleIntercept = scale.RescaleSlope, scale.RescaleIntercept
    frames = library.apply_modality_lut(frames, data)
    return np.asarray(filled(frames, np.nan if padding else None), dtype=np.float32)


def check_places(image: Path, mask: Path) -> None:
    """Check that a DICOM label map lies where its image does, as far as both say it.

    Raises:
        ValueError: It does not.
    """
    names = ["ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"]
    dcmread = require("pydicom", "dicom").dcmread
    ours, theirs = (dcmread(path, specific_tags=names) for path in (image, mask))
    for name in names:
        here, there = (list(map(float, each.get(name) or [])) for each in (ours, theirs))
        if len(here) == len(there) and not np.allclose(here, there, rtol=0, atol=0.01):
            raise ValueError(
                f"{mask} has the {name} {there}, but its image {image} has {here}: use the labels "
                "of this image; or, if the arrays do match, save them as PNG"
            )
