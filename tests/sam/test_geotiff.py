"""GeoTIFF: pixels without data, and masks of another place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from ddp_magic.prelude import SamDataset
from ddp_magic.sam.reading.readers import read

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
LABELS = np.zeros((20, 30), np.uint8)
LABELS[2:9, 3:12], LABELS[11:17, 14:28] = 1, 2


def raster(path: Path, pixels: Any, nodata: str) -> Path:
    """Write a TIFF as GDAL does, with a declared value for pixels without data."""
    tifffile.imwrite(
        path, pixels, photometric="minisblack", extratags=[(42113, "s", 0, nodata, True)]
    )
    return path


@pytest.mark.parametrize(
    ("dtype", "nodata", "value"),
    [
        (np.int16, "-9999", -9999),
        (np.uint16, "65535", 65535),
        (np.float32, "-3.4028234663852886e+38", np.finfo(np.float32).min),
        (np.float32, "nan", np.nan),
        (np.float64, "-9999.9 ", -9999.9),
    ],
)
def test_pixels_without_data_are_refused_in_an_image(
    tmp_path: Path, dtype: Any, nodata: str, value: float
) -> None:
    """They would be the darkest, or the brightest ones, and change the scale of all."""
    scene = RNG.integers(300, 900, (20, 30)).astype(dtype)
    scene[:6] = value
    path = raster(tmp_path / "a.tif", scene, nodata)
    with pytest.raises(ValueError, match=r"a\.tif.* (nodata value|not finite)"):
        SamDataset([path], [LABELS]).image(0)
    scene[:6] = 0
    assert np.array_equal(read(raster(path, scene, nodata), labels=False), scene)


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.uint8, 255), (np.int16, -9999), (np.float32, 65535), (np.uint16, 7)]
)
def test_pixels_without_data_are_no_object_of_a_mask(
    tmp_path: Path, dtype: Any, value: int
) -> None:
    """The error says how to leave them out."""
    labels = LABELS.astype(dtype)
    labels[14:, :5] = value
    path = raster(tmp_path / "m.tif", labels, str(value))
    other = raster(tmp_path / "n.tif", (labels == 1).astype(dtype), str(value))
    for masks in ([path], [[other, path]]):
        with pytest.raises(ValueError, match=rf"m\.tif: has pixels .*ignore_label={value};"):
            SamDataset([GRAY], masks)
    item = SamDataset([GRAY], [tifffile.imread(path)], ignore_label=value)[0]
    assert len(item["masks"]) == 2
    assert np.array_equal(item["ignored"], labels == value)


@pytest.mark.parametrize("nodata", ["0", "255", "-9999", "nan", "300", "none", ""])
def test_a_nodata_value_that_no_label_has_is_ignored(tmp_path: Path, nodata: str) -> None:
    """It was copied with the metadata of the image, for example. 0 is the background."""
    path = raster(tmp_path / "m.tif", LABELS, nodata)
    assert len(SamDataset([GRAY], [path])[0]["masks"]) == 2


def _geo(path: Path, x: float, y: float, side: float, *, matrix: bool = False) -> Path:
    """Write a GeoTIFF as GDAL does, with a map at its first corner."""
    tags = [
        (33550, "d", 3, (side, side, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, x, y, 0.0), True),
    ]
    if matrix:
        tags = [(34264, "d", 16, (side, 0, 0, x, 0, -side, 0, y, *[0] * 7, 1.0), True)]
    tifffile.imwrite(path, LABELS, photometric="minisblack", extratags=tags)
    return path


@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize(
    ("place", "fits"),
    [
        ((500_000, 4_000_000, 0.1), True),
        ((500_000.05, 4_000_000, 0.1), True),  # pixels are areas, or points
        ((500_001, 4_000_000, 0.1), False),
        ((500_000, 3_999_998, -0.1), False),  # from south to north
        ((500_000, 4_000_000, 0.2), False),
    ],
)
def test_a_geotiff_of_another_place_is_refused(
    tmp_path: Path, place: Any, fits: bool, matrix: bool
) -> None:
    """Its pixels show other ground than those of the image, whatever its size."""
    image = _geo(tmp_path / "a.tif", 500_000, 4_000_000, 0.1)
    mask = _geo(tmp_path / "b.tif", *place, matrix=matrix)
    if fits:
        assert len(SamDataset([image], [mask])) == 1
        return
    with pytest.raises(ValueError, match=r"b\.tif .* lies elsewhere, than the image .*a\.tif"):
        SamDataset([image], [mask])
