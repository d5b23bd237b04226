"""DICOM images, by pydicom."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from ddp_magic.sam.reading.channels import Array, Header, require


def dicom_header(path: Path, *, labels: bool) -> Header:
    """Return the header of a DICOM file, whose frames are images.

    Raises:
        ValueError: It has no image, or one that is not read right here.
    """
    data = require("pydicom", "dicom").dcmread(path, stop_before_pixels=True)
    each = data.get("PerFrameFunctionalGroupsSequence", [])
    wrong = {
        "is a DICOM mask: convert it to PNG or NIfTI, for example with dcmqi": labels,
        "is a DICOM file without an image": "Rows" not in data or "Columns" not in data,
        "is a DICOM image with a palette: save it as RGB": (
            data.get("PhotometricInterpretation") == "PALETTE COLOR"
        ),
        "has a Modality LUT Sequence: pass pydicom.pixels.apply_modality_lut(pixels, ds)": (
            data.get("ModalityLUTSequence")
        ),
        "scales each frame in another way: convert it to NIfTI with dcm2niix": any(
            "PixelValueTransformationSequence" in frame for frame in each
        ),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(message)
    kind = np.float32 if data.SamplesPerPixel == 1 else np.dtype(f"u{data.BitsAllocated // 8}")
    pages = int(data.get("NumberOfFrames", 1) or 1)
    return Header(pages, (int(data.Rows), int(data.Columns)), np.dtype(kind))


def dicom_number(path: Path) -> int:
    """Return the number of an image in its series."""
    read = require("pydicom", "dicom").dcmread
    data = read(path, stop_before_pixels=True, specific_tags=["InstanceNumber"])
    return int(data.get("InstanceNumber") or 0)


def read_dicom(path: Path, number: int) -> Array:
    """Read a frame, (H, W) float32, in Hounsfield units for CT, or (H, W, 3)."""
    return np.asarray(_dicom_frames(path, path.stat().st_mtime_ns)[number])


@lru_cache(maxsize=2)
def _dicom_frames(path: Path, _mtime_ns: int) -> Array:
    """Read all frames of a DICOM file; pixels that only fill the frame get the lowest value."""
    head = dicom_header(path, labels=False)
    data = require("pydicom", "dicom").dcmread(path)
    library = require("pydicom.pixels", "dicom")
    pixels = library.pixel_array(data)  # YCbCr becomes RGB
    if data.SamplesPerPixel > 1:
        return np.asarray(pixels.reshape(head.pages, data.Rows, data.Columns, 3))
    frames = pixels.reshape(head.pages, data.Rows, data.Columns).astype(np.float64)
    ends = [data.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    values = [int(each) for each in ends if each is not None]
    if data.get("PixelRepresentation"):  # writers note -2000 as the 63536 of the same bits
        values = [each - (each >= 2**15) * 2**16 for each in values]
    if values and ends[0] is not None:
        frames[(frames >= min(values)) & (frames <= max(values))] = np.nan
    if data.PhotometricInterpretation == "MONOCHROME1":  # 0 is white
        frames = (-1 if data.get("PixelRepresentation") else 2**data.BitsStored - 1) - frames
    for group in data.get("SharedFunctionalGroupsSequence", []):
        for scale in group.get("PixelValueTransformationSequence", []):
            data.RescaleSlope, data.RescaleIntercept = scale.RescaleSlope, scale.RescaleIntercept
    frames = library.apply_modality_lut(frames, data)
    return np.asarray(np.nan_to_num(frames, nan=np.nanmin(frames)), dtype=np.float32)
