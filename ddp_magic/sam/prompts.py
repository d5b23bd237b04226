"""Prompts as a person would give them: the first one of a kind, then clicks that correct.

All that is random follows from an object's key, so that it does not depend on the batch or the
number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_magic.sam.arrays import PAD
from ddp_magic.sam.layers import resized

KINDS = ("points", "boxes", "masks", "none")
JITTER = 0.1  # standard deviation of a drawn box's corners, share of its sides, as SAM was trained


class Prompts(NamedTuple):
    """What is known of each of M objects, besides the image."""

    points: Tensor  # (M, K, 2), (x, y) in pixels of the square
    labels: Tensor  # (M, K), 1 on the object, 0 off it, -10 no click
    boxes: Tensor  # (M, 4), (x0, y0, x1, y1), NaN for no box
    masks: Tensor  # (M, 1, s, s), logits, NaN for no mask

    def clicked(self, point: Tensor, label: Tensor, masks: Tensor) -> Prompts:
        """Return these with one click (M, 2), (M,) more, and the masks drawn so far."""
        points = torch.cat([point[:, None], self.points], 1)  # the newest first: pads stay behind
        return Prompts(points, torch.cat([label[:, None], self.labels], 1), self.boxes, masks)


def kinds_of(prompts: str | Mapping[str, float]) -> dict[str, float]:
    """Return the share of each kind of first prompt, out of 1.

    Raises:
        ValueError: An unknown kind, or shares that are not positive.
    """
    shares = {prompts: 1.0} if isinstance(prompts, str) else dict(prompts)
    if not shares or not set(shares) <= set(KINDS) or min(shares.values()) <= 0:
        raise ValueError(
            f"prompts are {', '.join(map(repr, KINDS))}, or shares of them such as "
            f"{{'points': 0.5, 'boxes': 0.5}}, not {prompts!r}"
        )
    return {kind: share / sum(shares.values()) for kind, share in shares.items()}


def first_prompts(
    batch: dict[str, Any],
    shares: dict[str, float],
    size: int,
    image_size: int,
    *,
    random: bool,
) -> Prompts:
    """Give each object its first prompt.

    "points": the data set's own clicks and box, or else one click on the object; "boxes": its own
    box, or else one around it; "masks": a rough mask of it; "none": nothing.

    Args:
        batch: what `prepare` made.
        shares: of the kinds.
        size: s, the side of the model's masks, in pixels.
        image_size: S, that of its square.
        random: as in training: boxes and masks are rough, clicks anywhere on the object. Otherwise
            they are exact, and clicks in its middle.

    Returns:
        The prompts of the batch's objects.
    """
    keys, labels, boxes = batch["keys"], batch["labels"], batch["boxes"]
    points, target = batch["points"], batch["target"]
    masks = torch.full((len(keys), 1, size, size), torch.nan, device=keys.device)
    kind = torch.searchsorted(
        torch.tensor(list(shares.values()), device=keys.device).cumsum(0)[:-1].double(),
        uniform(keys, 1),
        right=True,
    )  # (M,)
    is_kind = {name: kind == number for number, name in enumerate(shares)}
    nobody = torch.zeros_like(kind, dtype=torch.bool)
    own, boxed = is_kind.get("points", nobody), is_kind.get("boxes", nobody)
    labels = torch.where(own[:, None], labels, PAD)
    boxes = torch.where((own | boxed)[:, None], boxes, torch.nan)
    unboxed = boxed & boxes.isnan().any(1)
    if unboxed.any():
        boxes = boxes.clone()
        boxes[unboxed] = box_around(target[unboxed], keys[unboxed] if random else None, image_size)
    rough = is_kind.get("masks", nobody)
    if rough.any():
        masks[rough] = rough_mask(target[rough], size, keys[rough] if random else None)
    bare = own & boxes.isnan().any(1) & (labels == PAD).all(1)
    if bare.any():
        nothing = torch.full_like(masks[bare], -1.0)
        point, label = next_click(
            nothing, target[bare], batch["inside"][bare], keys[bare] if random else None, image_size
        )
        if labels.shape[1] == 0:
            points, labels = points.new_zeros(len(keys), 1, 2), labels.new_full((len(keys), 1), PAD)
        points, labels = points.clone(), labels.clone()
        points[bare, 0], labels[bare, 0] = point, label
    return Prompts(points, labels, boxes, masks)


def box_around(target: Tensor, keys: Tensor | None, image_size: int) -> Tensor:
    """Return boxes (M, 4) around masks (M, 1, T, T); with keys, each corner is off by some.

    Source:
        Kirillov et al., "Segment Anything", ICCV 2023: "random noise in each coordinate with
        standard deviation equal to 10% of the box sidelength, to a maximum of 20 pixels".
    """
    inside, size = target[:, 0] > 0.5, target.shape[-1]
    ends = []
    for line in (inside.any(1), inside.any(2)):  # columns, then rows; (M, S)
        ends.append((line.int().argmax(1), size - 1 - line.flip(1).int().argmax(1)))
    (x0, x1), (y0, y1) = ends
    boxes = to_square(torch.stack([x0, y0, x1, y1], 1), size, image_size)  # (M, 4)
    if keys is not None:
        sides = (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)
        noise = torch.stack([normal(keys, 10 + corner) for corner in range(4)], 1).to(boxes)
        boxes = boxes + (noise * JITTER * sides).clamp(-20, 20)
    return boxes.clamp(0, image_size - 1)


def rough_mask(target: Tensor, size: int, keys: Tensor | None) -> Tensor:
    """Return masks as logits (M, 1, s, s); with keys, blurred and cut too small or too large."""
    mask = F.interpolate(target, (size, size), mode="area")
    cut = torch.full((len(target), 1, 1, 1), 0.5, device=target.device)
    if keys is not None:
        wide = max(3, size // 8 // 2 * 2 + 1)
        mask = F.avg_pool2d(mask, wide, stride=1, padding=wide // 2)
        cut = (0.2 + 0.5 * uniform(keys, 2)).to(mask).view(-1, 1, 1, 1)
        cut = torch.minimum(cut, mask.amax((1, 2, 3), keepdim=True) / 2)  # never nothing
    return torch.where(mask > cut, 8.0, -8.0)


def next_click(
    logits: Tensor, target: Tensor, inside: Tensor, keys: Tensor | None, image_size: int
) -> tuple[Tensor, Tensor]:
    """Click where the mask is wrong, as someone would who corrects it.

    Args:
        logits: (M, 1, s, s).
        target: (M, 1, T, T), 0 to 1.
        inside: (M, 1, T, T), False in the padding around the image.
        keys: (M,), for a random wrong pixel each; None: the middle of the largest wrong part.
        image_size: S, in pixels, of the square that the clicks are for.

    Returns:
        Clicks (M, 2), (x, y) in pixels of the square; their labels (M,), 1 where the object is and
        0 where it is not. A perfect mask is clicked on once more, on the object.

    Source:
        Kirillov et al., "Segment Anything", ICCV 2023: the next point is "sampled uniformly from
        the error region"; Sofiiuk et al., "Reviving iterative training", 2021, for its middle.
    """
    size = target.shape[-1]
    drawn = resized(logits, size) > 0
    true = target > 0.5
    vanished = ~true.flatten(1).any(1).view(-1, 1, 1, 1)  # smaller than half a pixel here
    true |= vanished & (target > 0) & (target == target.amax((1, 2, 3), keepdim=True))
    wrong = (drawn != true) & inside  # (M, 1, T, T)
    perfect = ~wrong.flatten(1).any(1)
    wrong = torch.where(perfect.view(-1, 1, 1, 1), true & inside, wrong)
    flat = wrong.flatten(1)  # (M, T * T)
    if keys is None:
        # The more of a window around a pixel is wrong, the more central it is. On a grid of about
        # 64 x 64 cells, since the cost of a window grows with its area.
        side = max(1, size // 64)
        cells = F.avg_pool2d(wrong.double(), side, ceil_mode=True, divisor_override=1)  # counts
        # Sums along rows and columns as products, a tenth of the time of pooling; whole numbers in
        # float64 are exact in any order, so that equal weights stay equal.
        near = cells.new_ones(cells.shape[-2:]).tril(4).triu(-4)  # nine to a row, square
        around = blurred = cells
        for again in range(1, 5):  # again and again: only the middle of a large part stays full
            blurred = near @ blurred @ near
            around = around + blurred / 81**again
        weight = F.interpolate(around, (size, size), mode="bilinear").flatten(1)
        at = torch.where(flat, 1 + weight, 0).argmax(1)  # (M,)
    else:
        count = flat.cumsum(1, dtype=torch.int32)
        chosen = (uniform(keys) * count[:, -1]).int() + 1  # 1 to the number of wrong pixels
        at = torch.searchsorted(count, chosen[:, None])[:, 0].clamp(max=size * size - 1)
    label = true.flatten(1).gather(1, at[:, None])[:, 0]
    return to_square(torch.stack([at % size, at // size], 1), size, image_size), label.long()


def to_square(pixels: Tensor, size: int, image_size: int) -> Tensor:
    """Return the places of pixels of a square of `size` in one of `image_size`, float32."""
    return (pixels.float() + 0.5) * (image_size / size) - 0.5


def uniform(keys: Tensor, stream: int = 0) -> Tensor:
    """Return a number from 0 to 1 for each key, the same wherever that key is met; (M,) float64.

    Args:
        keys: (M,).
        stream: numbers of different streams have nothing to do with each other.

    Source:
        The mixing steps of SplitMix64 (Steele et al., "Fast splittable pseudorandom number
        generators", 2014).
    """
    x = (keys * 64 + stream) * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    x = x ^ (x >> 31 & (1 << 33) - 1)
    return (x & 0xFFFFFF).double() / 2**24


def normal(keys: Tensor, stream: int) -> Tensor:
    """Return standard normal numbers, (M,) float64, as `uniform` does."""
    found: Tensor = torch.special.ndtri(uniform(keys, stream).clamp(1e-6, 1 - 1e-6))
    return found
