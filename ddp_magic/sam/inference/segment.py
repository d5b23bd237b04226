"""Segmentation of all objects of an image, without prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ddp_magic.sam.arguments import check_flags, check_minimum, check_shares
from ddp_magic.sam.arrays.items import FOREGROUND, without_objects
from ddp_magic.sam.data.batches import collate, prepare
from ddp_magic.sam.inference.predict import evaluating, scaled_as_trained
from ddp_magic.sam.inference.tiles import Found, Tile, around, paint, split
from ddp_magic.sam.models.adapter import Maps, Sam, embeddings_of
from ddp_magic.sam.models.instances import InstanceDecoder, decoder_of, middles
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.postprocessing import resizing
from ddp_magic.sam.models.prompts import Prompts
from ddp_magic.sam.process_group import bar, print0, unwrapped

POINTS_PER_SIDE = 16  # of a tile, without a decoder of instances
ON_GRID, PROPOSED = (0.7, 0.8), (0.5, 0.5)  # minimum IoU and stability
SMALL = 128  # px, the input of a model that is so small that it needs only one thread
LEAST = 8  # px, the minimum side of a tile
TILES = 16  # that are encoded at once
CLICKS = 64  # that are decoded at once

# From the embeddings of some tiles to clicks: index of the tile, and x and y in the image, (n, 3).
ClicksOf = Callable[[Maps, Sequence[Tile]], Tensor]


@torch.no_grad()
def segment(  # noqa: PLR0913 -- options with defaults
    model: nn.Module,
    image: ArrayLike,
    *,
    tile: int | None = None,
    points_per_side: int | None = None,
    min_iou: float | None = None,
    min_stability: float | None = None,
    min_area: int = 16,
    max_share: float = 0.9,
    quiet: bool = False,
) -> NDArray[np.int32]:
    """Segment all objects of an image.

    The image is split into tiles of the size of the training images, so that the model sees objects
    at the scale that it knows. Each object that the decoder of instances proposes (`train` with
    `auxiliary`) gets a click in its middle; without such a decoder, the clicks are on a grid. The
    good masks are kept. An object that is cut by its tile is looked at again in a tile around it;
    parts of objects that are larger than a tile are joined.

    Args:
        model: a model of the SAM family on any device, a `PromptedSam`, or DDP around one.
        image: (H, W) or (H, W, 3), of any size; for the dtype, see `predict`.
        tile: side of the tiles, in pixels; they overlap by half. None: the median size of the
            training images, which `train` stores in the config; or the whole image, if it is not
            larger than they are or their size is not known.
        points_per_side: number of clicks along the side of a tile. None: the proposals of the
            decoder, or 16 without one.
        min_iou: minimum IoU that the model predicts for a mask. None: .7 on a grid, where most
            clicks are not in the middle of an object; .5 for the proposals of the decoder.
        min_stability: minimum IoU between the mask thresholded at logit 1 and at logit -1. None: .8
            on a grid, .5 for proposals.
        min_area: minimum area of an object, in pixels.
        max_share: maximum fraction of a tile that an object covers.
        quiet: whether to print nothing. Otherwise, a line says which tiles and clicks are used, and
            a bar shows the progress after two seconds.

    Returns:
        A label map (H, W), where 0 is background. If two masks overlap by more than half of one of
        them, only the better one is kept.

    Raises:
        ValueError: The image has another shape, or an argument is invalid.

    Source:
        Kirillov et al., "Segment Anything", ICCV 2023, appendix B; tiles with a margin, and clicks
        from a decoder, as in Archit et al., "Segment Anything for Microscopy", Nature Methods 2025.
    """
    if tile is not None:
        check_minimum(LEAST, tile=tile)
    if points_per_side is not None:
        check_minimum(1, points_per_side=points_per_side)
    check_minimum(0, min_area=min_area)
    check_flags(quiet=quiet)
    check_shares(max_share=max_share, min_iou=min_iou or 0, min_stability=min_stability or 0)
    rgb, sam = scaled_as_trained(model, image), unwrapped(model)  # (3, H, W)
    height, width = rgb.shape[1:]
    side, shortest = _tile_side(sam, max(height, width), tile)
    rgb = _padded(rgb, shortest)
    size = rgb.shape[1], rgb.shape[2]
    tiles: list[Tile] = split(size, side)
    decoder = decoder_of(sam) if points_per_side is None else None
    defaults = ON_GRID if decoder is None else PROPOSED
    minima = tuple(
        d if x is None else x for x, d in zip((min_iou, min_stability), defaults, strict=True)
    )
    step = side / (points_per_side or POINTS_PER_SIDE)  # px
    if not quiet:
        overlap = (
            f"s of {side} pixels, overlap {side // 2}" if len(tiles) > 1 else f" of {side} pixels"
        )
        how = "proposed by the decoder" if decoder else f"on a grid, {step:g} pixels apart"
        print0(f"segment: {height} x {width} pixels; {len(tiles)} tile{overlap}; clicks {how}")

    def propose(maps: Maps, some: Sequence[Tile]) -> Tensor:
        return _on_grid(some, step) if decoder is None else _proposed(decoder, maps, some, wrapper)

    def repeat(_maps: Maps, some: Sequence[Tile]) -> Tensor:
        return torch.tensor([[number, *clicked[each]] for number, each in enumerate(some)])

    with evaluating(model) as (wrapper, device), _threads(wrapper):
        if decoder is not None:
            decoder.to(device)
        look = _Look(wrapper, rgb, device, minima, max_share, quiet)
        found = look("segment", tiles, propose)
        cut = [each for each in paint(found, size, min_area)[1] if each.is_cut]
        clicked = {around(each, size): each.click for each in cut}
        found += look("cut objects", list(clicked), repeat)
    return paint(found, size, min_area)[0][:height, :width]


@contextmanager
def _threads(wrapper: PromptedSam) -> Iterator[None]:
    """Use one thread for a tiny model in a `with` block.

    Its operations are so small that threads mostly wait for each other: on two busy cores, two
    threads took 370 s for an image of 2048 x 2048 pixels, and one took 42 s.
    """
    threads = torch.get_num_threads()
    if wrapper.geometry.image_size <= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tile_side(sam: Sam, longest: int, tile: int | None) -> tuple[int, int]:
    """Return the side of the tiles, and the minimum of the longer side of an image, in pixels."""
    trained = getattr(sam.config, "training_size", None)
    if tile or trained is None:
        return tile or longest, 1
    smallest, median, largest = trained
    return (max(longest, smallest), smallest) if longest <= largest else (median, 1)


def _padded(rgb: NDArray[np.uint8], shortest: int) -> NDArray[np.uint8]:
    """Pad an image (3, H, W) at the right with its median color, if both sides are too short."""
    if max(rgb.shape[1:]) >= shortest:
        return rgb
    out = np.empty((3, rgb.shape[1], shortest), np.uint8)
    out[:] = np.median(rgb, (1, 2))[:, None, None]
    out[:, :, : rgb.shape[2]] = rgb
    return out


@dataclass
class _Look:
    """Finds the masks at some clicks in some tiles."""

    wrapper: PromptedSam
    rgb: NDArray[np.uint8]
    device: torch.device
    minima: tuple[float, ...]  # of the IoU and the stability of a mask
    max_share: float
    quiet: bool

    def __call__(self, name: str, tiles: Sequence[Tile], clicks_of: ClicksOf) -> list[Found]:
        """Return the good masks of all tiles, and show the progress."""
        found: list[Found] = []
        with bar(tiles, name, shown=not self.quiet, delay=2, leave=False) as progress:
            for start in range(0, len(tiles), TILES):
                some = tiles[start : start + TILES]
                items = [without_objects(each.of(self.rgb)) for each in some]
                pixels = prepare(collate(items), self.wrapper.geometry, self.device)["pixel_values"]
                maps = self.wrapper.encode(pixels)
                clicks = clicks_of(maps, some)
                for first in range(0, len(clicks), CLICKS):
                    found += self._masks(maps, some, clicks[first : first + CLICKS])
                progress.update(len(some))
        return found

    def _masks(self, maps: Maps, tiles: Sequence[Tile], clicks: Tensor) -> list[Found]:
        """Return the good masks at some clicks (n, 3) that contain the click."""
        wrapper, device, n = self.wrapper, self.device, len(clicks)
        number, origin = clicks[:, 0].long(), torch.tensor([[t.left, t.top] for t in tiles])
        size, s = (tiles[0].height, tiles[0].width), wrapper.mask_size
        (new_h, new_w), (h, w) = wrapper.geometry.resized(size), size
        at = (clicks[:, 1:] - origin[number]) * torch.tensor([new_w / w, new_h / h])
        prompts = Prompts(
            at[:, None].to(device),
            torch.full((n, 1), FOREGROUND, device=device),
            torch.full((n, 4), torch.nan, device=device),
            torch.full((n, 1, s, s), torch.nan, device=device),
        )
        batch = {"embeddings": maps, "image_index": number.to(device), "prompts": prompts}
        ((logits, iou),) = wrapper(batch)  # (n, C, s, s), (n, C)
        good = (iou >= self.minima[0]) & (_stability(logits) >= self.minima[1])
        resize = resizing(s, size, wrapper.geometry, logits)
        found = []
        for low, score, row in zip(
            logits[good], iou[good].tolist(), torch.where(good)[0].tolist(), strict=True
        ):
            tile = tiles[int(number[row])]
            y, x = resize.window(low[None])
            mask = resize.part(low[None], (y, x))[0].half().cpu().numpy()
            click = clicks[row, 1].item(), clicks[row, 2].item()
            each = Found.in_tile(score, mask, (y.start, x.start), click, tile, self.rgb.shape[1:])
            if each.contains_click and each.area <= self.max_share * h * w:
                found.append(each)
        return found


def _on_grid(tiles: Sequence[Tile], step: float) -> Tensor:
    """Return the clicks of a grid over the image that are in the inner part of each tile."""
    clicks = []
    for number, tile in enumerate(tiles):
        top, left, bottom, right = tile.inner
        y, x = (
            np.floor((np.arange(np.ceil(low / step - 0.5), high / step - 0.5) + 0.5) * step)
            if length > step / 2
            else [(low + high) // 2]  # too narrow for a grid
            for low, high, length in ((top, bottom, tile.height), (left, right, tile.width))
        )
        clicks += [(number, at_x, at_y) for at_y in y for at_x in x]
    return torch.tensor(clicks, dtype=torch.float32).view(-1, 3)


def _proposed(
    decoder: InstanceDecoder, maps: Maps, tiles: Sequence[Tile], wrapper: PromptedSam
) -> Tensor:
    """Return the middles of objects that are in the inner part of each tile."""
    out = decoder(embeddings_of(wrapper.sam, maps))  # (B, 3, s, s)
    number, at = (each.cpu() for each in middles(out))
    height, width = tiles[0].height, tiles[0].width
    new_h, new_w = wrapper.geometry.resized((height, width), out.shape[-1])
    pixel = torch.tensor([width / new_w, height / new_h])  # of the maps, in pixels of the image
    at = (at + 0.5) * pixel - 0.5
    inside = (at < torch.tensor([width, height])).all(1)  # and not in the padding
    at += torch.tensor([[t.left, t.top] for t in tiles])[number]
    inner = torch.tensor([t.inner for t in tiles])[number].view(-1, 2, 2).flip(2)  # corners (x, y)
    # A little more, so that a middle on the border is in one of the tiles.
    near = ((at >= inner[:, 0] - pixel) & (at <= inner[:, 1] + pixel)).all(1) & inside
    return torch.cat([number[:, None], at], 1)[near]


def _stability(logits: Tensor) -> Tensor:
    """Return the IoU of the masks (m, C, s, s) thresholded at logits 1 and -1, (m, C)."""
    inner, outer = (logits > 1).flatten(2).sum(2), (logits > -1).flatten(2).sum(2)
    return inner / outer.clamp(min=1)
