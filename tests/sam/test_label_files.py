"""The labels in files with palettes or few bits are those that were saved, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddp_magic.prelude import SamDataset
from ddp_magic.sam.reading.readers import read

VOID = np.zeros((20, 30), np.uint8)
VOID[2:9, 3:12], VOID[11:17, 14:28], VOID[9:11, 3:12] = 1, 2, 255


def _palette(indices: Any, colors: Any) -> Image.Image:
    made = Image.frombytes("P", (30, 20), np.asarray(indices, np.uint8).tobytes())
    made.putpalette(np.asarray(colors, np.uint8).tobytes())
    return made


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "bmp"])
def test_a_palette_that_is_a_scale_of_gray(tmp_path: Path, suffix: str) -> None:
    """Pillow's GIF and PNG optimizers number the gray levels that are used, such as 255 as 3."""
    shades = np.array([0, 1, 2, 255], np.uint8)
    path, gray = tmp_path / f"a.{suffix}", np.repeat(shades, 3)
    for made in (Image.fromarray(VOID), _palette(np.searchsorted(shades, VOID), gray)):
        made.save(path)
        assert np.array_equal(read(path, labels=True), VOID)
    item = SamDataset([VOID], [path], ignore_label=255)[0]
    assert item["ignored"].sum() == (VOID == 255).sum()
    assert len(item["masks"]) == 2


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "bmp"])
def test_the_background_of_a_palette_is_black(tmp_path: Path, suffix: str) -> None:
    """In every format: indices where 0 is black; where another index is, the file is refused."""
    path, labels = tmp_path / f"a.{suffix}", VOID % 255
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    _palette(labels, colors).save(path)
    assert np.array_equal(read(path, labels=True), labels)
    rgb = Image.fromarray(colors[labels])
    order = [2, 0, 1]  # as `quantize` may number them
    _palette(np.array(order)[labels], colors[np.argsort(order)]).save(path)
    assert np.array_equal(np.asarray(Image.open(path).convert("RGB")), np.asarray(rgb))
    with pytest.raises(ValueError, match=rf"a\.{suffix}.*background is uncertain"):
        SamDataset([np.asarray(rgb)], [path])


@pytest.mark.parametrize("colors", [[], [[0, 0, 0]]])
def test_a_pil_image_without_some_colors_is_refused(colors: Any) -> None:
    """It is unclear what they show."""
    with pytest.raises(ValueError, match=r"mask 0, .* without a color in its palette"):
        SamDataset([VOID], [_palette(VOID, np.reshape(colors, (-1, 3)))])
