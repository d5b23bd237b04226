"""Images of any dtype keep their gray levels when they are converted to uint8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from skimage import exposure

from ddp_magic.prelude import SamDataset

MASK = np.zeros((40, 56), int)
MASK[5:20, 5:30] = 1
NOISE = np.random.default_rng(0).random((40, 56)).astype(np.float32)


@pytest.mark.parametrize(
    "image",
    [
        NOISE / NOISE.mean(),
        np.log1p(NOISE * 4000),
        NOISE * 1.02,  # as bicubic resizing returns
        exposure.rescale_intensity(NOISE, out_range=(0.0, 20.0)),
        (NOISE * 9).astype(np.uint16),
        np.where(MASK, NOISE * 9, 0).astype(np.int64),
    ],
)
def test_small_values_do_not_become_a_few_gray_levels(image: Any) -> None:
    """Such as images that were divided by their mean, and 16-bit images of a few photons."""
    found = SamDataset([image], [MASK])[0]["image"]
    assert len(found.unique()) >= min(len(np.unique(image)), 100)
    assert found.max() == 255


@pytest.mark.parametrize("background", [0, 500, 60_000])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int32])
def test_a_small_object_on_a_flat_background_keeps_its_values(background: int, dtype: type) -> None:
    """Percentiles would be those of the background."""
    image, mask = np.full((256, 256), background, dtype), np.zeros((256, 256), int)
    mask[40:46, 50:58] = 1
    image[mask > 0] = np.linspace(300, 4000, 48)
    found = SamDataset([image], [mask])[0]["image"][0].numpy()
    order = np.argsort(image[mask > 0], kind="stable")
    assert (np.diff(found[mask > 0][order].astype(int)) >= 0).all()
    assert len(np.unique(found[mask > 0])) > 10


@pytest.mark.parametrize("window", [(200, 10), (10, 10), (0, float("nan")), (0, float("inf"))])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_invalid_window_is_refused(window: Any, dtype: type) -> None:
    """Otherwise all images would be black and white."""
    with pytest.raises(ValueError, match="low < high"):
        SamDataset([(NOISE * 255).astype(dtype)], [MASK], window=window)
