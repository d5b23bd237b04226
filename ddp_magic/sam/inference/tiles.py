"""Splitting an image into overlapping tiles, and merging what is found in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Tile(NamedTuple):
    """A part of an image. Objects with their middle in the inner rectangle are looked for in it."""

    top: int  # px
    left: int
    height: int
    width: int
    inner: tuple[float, float, float, float]  # top, left, bottom, right, in the image

    def of(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return this part of an image (3, H, W)."""
        return rgb[:, self.top : self.top + self.height, self.left : self.left + self.width]


class Found(NamedTuple):
    """A candidate mask, cropped to the pixels that it contains."""

    score: float
    logits: NDArray[np.float16]  # (h, w)
    top: int  # of the crop in the image, px
    left: int
    click: tuple[float, float]  # (x, y) in the image
    tile: Tile
    is_cut: bool  # by a side of the tile that is not a border of the image

    @classmethod
    def in_tile(
        cls,
        score: float,
        logits: NDArray[np.float16],
        corner: tuple[int, int],
        click: tuple[float, float],
        tile: Tile,
        size: Sequence[int],
    ) -> Found:
        """Crop a mask whose top left corner is at `corner` in a tile of an image of `size`."""
        y, x = (np.flatnonzero((logits > 0).any(axis)) for axis in (1, 0))
        if not len(y):
            y = x = np.zeros(1, np.int64)
        logits = logits[y[0] : y[-1] + 1, x[0] : x[-1] + 1].copy()
        top, left = tile.top + corner[0] + int(y[0]), tile.left + corner[1] + int(x[0])
        bottom, right = top + logits.shape[0], left + logits.shape[1]
        is_cut = (
            tile.top == top > 0
            or tile.left == left > 0
            or tile.top + tile.height == bottom < size[0]
            or tile.left + tile.width == right < size[1]
        )
        return cls(score, logits, top, left, click, tile, is_cut)

    @property
    def contains_click(self) -> bool:
        """Whether the click is on the mask."""
        x, y = round(self.click[0]) - self.left, round(self.click[1]) - self.top
        h, w = self.logits.shape
        return bool(0 <= y < h and 0 <= x < w and self.logits[y, x] > 0)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask, (h, w)."""
        return self.logits > 0

    @property
    def area(self) -> int:
        """The area of the mask, in pixels."""
        return int(np.count_nonzero(self.mask))

    def place(self, picture: NDArray[Any]) -> NDArray[Any]:
        """Return the part of a picture (H, W) that the mask is for, as a view."""
        h, w = self.logits.shape
        return picture[self.top : self.top + h, self.left : self.left + w]


def split(size: tuple[int, int], side: int) -> list[Tile]:
    """Split an image into square tiles that overlap by at least half; none extends over a border.

    Args:
        size: height and width of the image, in pixels.
        side: side of the tiles. If the image is smaller, so are the tiles.
    """
    return [
        Tile(y, x, min(side, size[0]), min(side, size[1]), (y0, x0, y1, x1))
        for y, y0, y1 in _spans(size[0], side)
        for x, x0, x1 in _spans(size[1], side)
    ]


def _spans(length: int, side: int) -> list[tuple[int, float, float]]:
    """Return the start of each tile along an axis, and the start and end of its inner part."""
    steps = max(0, -(-2 * (length - side) // side))
    starts = np.rint(np.linspace(0, max(0, length - side), steps + 1)).astype(int)
    edges = [0.0, *((starts[1:] + starts[:-1] + side) / 2).tolist(), float(length)]
    return list(zip(starts.tolist(), edges[:-1], edges[1:], strict=True))


def around(found: Found, size: tuple[int, int]) -> Tile:
    """Return the tile with the object in its middle, as far as the borders of the image allow."""
    h, w = found.tile.height, found.tile.width
    top = int(np.clip(found.top + (found.logits.shape[0] - h) // 2, 0, size[0] - h))
    left = int(np.clip(found.left + (found.logits.shape[1] - w) // 2, 0, size[1] - w))
    return Tile(top, left, h, w, (top, left, top + h, left + w))


def paint(
    found: Sequence[Found], size: tuple[int, int], min_area: int
) -> tuple[NDArray[np.int32], list[Found]]:
    """Combine masks into one label map: first those that are not cut, each the best first.

    A mask that is mostly covered is skipped. If it is cut, and continues an object that is cut too,
    it is added to this object. A pixel in several masks belongs to the one with the highest logit.

    Returns:
        A label map (H, W), and the mask that was painted first for each label.
    """
    labels, highest = np.zeros(size, dtype=np.int32), np.zeros(size, dtype=np.float16)
    kept: list[Found] = []
    for each in sorted(found, key=lambda one: (one.is_cut, -one.score)):
        mask, place, best = each.mask, each.place(labels), each.place(highest)
        of = _continued(each, labels, kept) if each.is_cut else 0
        shared = np.bincount(place[mask], minlength=1)  # with background, and with each object
        if not of and shared[0] < max(min_area, each.area / 2):
            continue
        # Only the border is contested: an object inside this one keeps its pixels.
        border = [n for n in np.flatnonzero(shared) if not n or shared[n] < kept[n - 1].area / 2]
        if not of:
            kept.append(each)
        won = mask & (each.logits > best) & np.isin(place, border)
        place[won], best[won] = of or len(kept), each.logits[won]
    return labels, kept


def _continued(each: Found, labels: NDArray[np.int32], kept: list[Found]) -> int:
    """Return the label of the object that a mask, which is cut, is another part of; 0: none.

    They cover each other in the overlap of their tiles: half of what the tile contains of the
    object, and a quarter of the mask.
    """
    shared = np.bincount(each.place(labels)[each.mask], minlength=1)
    shared[0] = 0
    of = int(shared.argmax())
    if not shared[of] or not kept[of - 1].is_cut:
        return 0
    t = each.tile
    inside = np.count_nonzero(labels[t.top : t.top + t.height, t.left : t.left + t.width] == of)
    enough = shared[of] >= max(inside / 2, each.area / 4)
    return of if enough else 0
