"""Tiles, and how what is found in them is merged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ddp_magic.prelude import SamDataset, cells, segment, tiny_sam
from ddp_magic.sam.data.access import training_size
from ddp_magic.sam.data.batches import MEAN, STD, Geometry
from ddp_magic.sam.inference.segment import _on_grid
from ddp_magic.sam.inference.tiles import Found, Tile, around, paint, split
from ddp_magic.sam.models.instances import InstanceDecoder, attach_decoder
from ddp_magic.sam.models.postprocessing import resizing

SIZES = [(1, 1), (63, 64), (64, 64), (65, 64), (64, 96), (97, 200), (1000, 30), (130, 129)]


@pytest.mark.parametrize("size", SIZES)
def test_tiles_cover_the_image_and_their_inner_parts_do_so_once(size: tuple[int, int]) -> None:
    """Each tile is as large as the image allows; they overlap by at least half."""
    tiles, inner = split(size, 64), np.zeros(size, int)
    for tile in tiles:
        assert (tile.height, tile.width) == (min(size[0], 64), min(size[1], 64))
        assert 0 <= tile.top <= size[0] - tile.height
        assert 0 <= tile.left <= size[1] - tile.width
        top, left, bottom, right = (int(np.ceil(edge)) for edge in tile.inner)
        inner[top:bottom, left:right] += 1
    assert (inner == 1).all()
    tops = sorted({tile.top for tile in tiles})
    assert max(np.diff(tops), default=0) <= 32
    assert len(tops) == 1 + -(-max(0, size[0] - 64) // 32)


@pytest.mark.parametrize("size", SIZES)
def test_the_clicks_of_all_tiles_form_one_grid(size: tuple[int, int]) -> None:
    """Each is in one tile; an image that is too narrow for the grid has a row in its middle."""
    clicks = _on_grid(split(size, 64), 4)[:, 1:].tolist()
    y, x = ([*range(2, length, 4)] or [0] for length in size)
    assert sorted(clicks) == [[at_x, at_y] for at_x in x for at_y in y]


@pytest.mark.parametrize(
    ("trained", "tiles", "side"),
    [
        (None, 1, 96),
        ([64, 80, 96], 1, 96),
        ([32, 48, 64], 3, 48),
        ([128, 128, 160], 1, 128),
    ],
)
def test_tiles_have_the_size_of_the_training_images(
    trained: list[int] | None, tiles: int, side: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image that is not larger than they are is one tile; a smaller one is padded."""
    seen: list[Any] = []
    model, image = tiny_sam(), np.full((40, 96), 99, np.uint8)
    model.vision_encoder.register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    model.config.training_size = trained
    assert segment(model, image, points_per_side=1, max_share=0).shape == image.shape
    count = f"{tiles} tiles" if tiles > 1 else "1 tile"
    assert f"40 x 96 pixels; {count} of {side} pixels" in capsys.readouterr().out
    assert len(seen) == tiles
    rows = round(64 * 40 / side)
    gray = seen[0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert (gray[:, : min(rows, 64)].round() == 99).all()  # also in the padding at the right
    assert (seen[0][:, rows:] == 0).all()


def test_an_image_without_objects_has_no_label() -> None:
    """The decoder proposes nothing."""
    model, decoder = tiny_sam(), InstanceDecoder(96)
    attach_decoder(model, decoder)
    nn.init.constant_(decoder.conv2.bias, -20.0)
    assert segment(model, np.zeros((90, 70), np.uint8), tile=32).max() == 0


def test_the_size_of_the_training_images_is_that_of_the_longer_sides() -> None:
    """The shortest, the median and the longest."""
    images = [np.zeros(size, np.uint8) for size in ((10, 20), (40, 30), (50, 50))]
    assert training_size(SamDataset(images, [np.ones_like(each) for each in images])) == [
        20,
        40,
        50,
    ]
    assert training_size(SamDataset(*cells(n=1))) == [64, 64, 64]


def _found(
    mask: NDArray[Any], score: float, top: int = 0, tile: Tile | None = None, level: float = 1.0
) -> Found:
    """Return a candidate with its mask at `top` in a tile, which by default is all of the image."""
    logits = np.where(mask, level, -1).astype(np.float16)
    whole = Tile(0, 0, 20, 8, (0, 0, 20, 8))
    return Found.in_tile(score, logits, (top, 0), (1, 1), tile or whole, (20, 8))


def test_overlaps_are_painted_once() -> None:
    """Of two masks of an object, only the better one is kept; another keeps its free pixels."""
    a = np.zeros((8, 8), bool)
    a[:4] = True
    b, c = a.copy(), np.zeros((8, 8), bool)
    b[4] = True  # mostly a
    c[3:8] = True  # partly a
    labels, kept = paint([_found(b, 0.8), _found(a, 0.9), _found(c, 0.7, 2)], (20, 8), 4)
    assert [each.score for each in kept] == pytest.approx([0.9, 0.7])
    assert (labels[:4] == 1).all()
    assert (labels[5:10] == 2).all()
    assert not labels[4].any()
    assert not labels[10:].any()


def test_a_border_belongs_to_the_mask_with_the_higher_logit() -> None:
    """But an object inside another one keeps its pixels."""
    a, b = np.zeros((2, 8, 8), bool)
    a[:5], b[4:] = True, True
    labels, _ = paint([_found(a, 0.9), _found(b, 0.8, level=2.0)], (20, 8), 4)
    assert labels[:8, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    small = np.zeros((8, 8), bool)
    small[3:5, 3:5] = True
    labels, _ = paint([_found(small, 0.9), _found(a | b, 0.8, level=2.0)], (20, 8), 4)
    assert (labels == 1).sum() == 4
    assert (labels == 2).sum() == 60


def test_masks_that_continue_outside_the_tile_are_cut() -> None:
    """An object at the border of the image is whole; at the border of a tile it is not."""
    row = np.zeros((4, 4), np.float16)
    row[0] = 1
    for logits, (top, left), size, is_cut in (
        (row, (0, 0), (9, 4), False),
        (row, (4, 0), (9, 4), True),
        (row.T, (0, 0), (4, 9), False),
        (row.T, (0, 4), (4, 9), True),
        (row[::-1], (0, 0), (9, 4), True),
        (row[::-1], (5, 0), (9, 4), False),
    ):
        tile = Tile(top, left, 4, 4, (0, 0, 9, 9))
        assert Found.in_tile(1.0, logits, (0, 0), (0, 0), tile, size).is_cut == is_cut


def test_a_cut_object_is_looked_at_in_a_tile_around_it() -> None:
    """The tile has the same size, and stays inside the image."""
    tile = Tile(4, 0, 8, 8, (4, 0, 12, 8))
    mask = np.zeros((8, 8), bool)
    mask[5:, 2:4] = True
    assert around(_found(mask, 1, tile=tile), (20, 8))[:4] == (6, 0, 8, 8)
    mask[:] = True
    low = Tile(12, 0, 8, 8, (12, 0, 20, 8))
    assert around(_found(mask, 1, tile=low), (20, 8))[:4] == (12, 0, 8, 8)


def test_parts_of_an_object_that_is_larger_than_a_tile_are_joined() -> None:
    """They agree where their tiles overlap; another object that is cut is not joined."""
    bar, other = np.zeros((2, 8, 8), bool)
    bar[:, :3] = True
    other[:4, 4:7] = True
    tops = 0, 4, 8, 12
    parts = [_found(bar, 0.9, tile=Tile(top, 0, 8, 8, (0, 0, 20, 8))) for top in tops]
    beside = _found(other, 0.8, tile=Tile(8, 0, 8, 8, (0, 0, 20, 8)))
    labels, _ = paint([*parts, beside], (20, 8), 4)
    assert len(np.unique(labels[:, :3])) == 1
    assert labels[8, 5] not in {0, labels[0, 0]}


@pytest.mark.parametrize("size", [(64, 64), (40, 96), (300, 200), (7, 90)])
@pytest.mark.parametrize("stretch", [False, True])
def test_a_part_of_a_mask_is_resized_as_the_whole(size: tuple[int, int], stretch: bool) -> None:
    """The window contains all pixels, and the same logits; it is empty without a pixel."""
    geometry = Geometry(64, stretch)
    logits = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits[:, :9], logits[:, 14:], logits[:, :, :3], logits[:, :, 9:] = -1, -1, -1, -1
    resize = resizing(32, size, geometry, logits)
    whole = resize.part(logits, (slice(None), slice(None)))
    y, x = resize.window(logits)
    torch.testing.assert_close(resize.part(logits, (y, x)), whole[:, y, x], rtol=0, atol=1e-5)
    outside = whole.clone()
    outside[:, y, x] = -1
    assert not (outside > 0).any()
    mask = torch.zeros(size, dtype=torch.bool)
    assert resize.part(logits - 99, resize.window(logits - 99, mask)).numel() == 0
    mask[5, 60:62] = True
    assert resize.window(logits - 99, mask) == (slice(5, 6), slice(60, 62))
