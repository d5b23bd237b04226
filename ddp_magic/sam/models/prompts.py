"""Simulated prompts: a first prompt, then clicks that correct the predicted mask.

Random choices depend only on the key of an object, not on the batch or the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_magic.sam.arrays.items import PAD

KINDS = ("points", "boxes", "masks", "none")
JITTER = 0.1  # standard deviation of box corners, as a fraction of the sides


class Prompts(NamedTuple):
    """The prompts of M objects."""

    points: Tensor  # (M, K, 2), (x, y) in pixels of the input square
    labels: Tensor  # (M, K), 1 on the object, 0 off it, -10 without a click
    boxes: Tensor  # (M, 4), (x0, y0, x1, y1), NaN without a box
    masks: Tensor  # (M, 1, s, s), logits, NaN without a mask

    def clicked(self, point: Tensor, label: Tensor, masks: Tensor) -> Prompts:
        """Return the prompts with one more click (M, 2), its label (M,), and the last masks."""
        points = torch.cat([point[:, None], self.points], 1)  # padding stays at the end
        return Prompts(points, torch.cat([label[:, None], self.labels], 1), self.boxes, masks)


def kinds_of(prompts: str | Mapping[str, float]) -> dict[str, float]:
    """Return the fraction of each kind of first prompt; they sum to 1.

    Raises:
        ValueError: A kind is unknown, or a fraction is not positive.
    """
    shares: Any = {prompts: 1.0} if isinstance(prompts, str) else prompts
    known = isinstance(shares, Mapping) and shares and set(shares) <= set(KINDS)
    if not known or not all(isinstance(x, Real) and 0 < float(x) < inf for x in shares.values()):
        raise ValueError(
            f"invalid prompts {prompts!r}: use {', '.join(map(repr, KINDS))}, or a mixture such as "
            f"{{'points': 0.5, 'boxes': 0.5}}"
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
    """Create the first prompt of each object.

    "points": the clicks and the box of the data set, or one click on the object if it has neither;
    "boxes": the box of the data set, or one around the object; "masks": a rough mask; "none": no
    prompt.

    Args:
        batch: a batch from `prepare`.
        shares: fraction of each kind, from `kinds_of`.
        size: s, the side of the model's masks, in pixels.
        image_size: S, the side of the input square, in pixels.
        random: whether to create prompts as in training: inexact boxes and masks, and clicks
            anywhere on the object. Otherwise prompts are exact, with clicks in the middle.

    Returns:
        The prompts of all objects of the batch.
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
    no_object = torch.zeros_like(kind, dtype=torch.bool)
    own, boxed = is_kind.get("points", no_object), is_kind.get("boxes", no_object)
    labels = torch.where(own[:, None], labels, PAD)
    boxes = torch.where((own | boxed)[:, None], boxes, torch.nan)
    unboxed = boxed & boxes.isnan().any(1)
    if unboxed.any():
        boxes = boxes.clone()
        boxes[unboxed] = box_around(target[unboxed], keys[unboxed] if random else None, image_size)
    rough = is_kind.get("masks", no_object)
    if rough.any():
        masks[rough] = rough_mask(target[rough], size, keys[rough] if random else None)
    unprompted = own & boxes.isnan().any(1) & (labels == PAD).all(1)
    if unprompted.any():
        true, inside = target[unprompted], batch["inside"][unprompted]
        empty, drawn = torch.full_like(true, -1.0), keys[unprompted] if random else None
        point, label = next_click(empty, true, inside, drawn, image_size)
        if labels.shape[1] == 0:
            points, labels = points.new_zeros(len(keys), 1, 2), labels.new_full((len(keys), 1), PAD)
        points, labels = points.clone(), labels.clone()
        points[unprompted, 0], labels[unprompted, 0] = point, label
    return Prompts(points, labels, boxes, masks)


def box_around(target: Tensor, keys: Tensor | None, image_size: int) -> Tensor:
    """Return boxes (M, 4) around masks (M, 1, T, T); with keys, add noise to the corners.

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
    """Return masks as logits (M, 1, s, s); with keys, blur them, and shrink or enlarge them."""
    mask = F.interpolate(target, (size, size), mode="area")
    cut = torch.full((len(target), 1, 1, 1), 0.5, device=target.device)
    if keys is not None:
        wide = max(3, size // 8 // 2 * 2 + 1)
        mask = F.avg_pool2d(mask, wide, stride=1, padding=wide // 2)
        cut = (0.2 + 0.5 * uniform(keys, 2)).to(mask).view(-1, 1, 1, 1)
        cut = torch.minimum(cut, mask.amax((1, 2, 3), keepdim=True) / 2)  # never empty
    return torch.where(mask > cut, 8.0, -8.0)


def next_click(
    logits: Tensor, target: Tensor, inside: Tensor, keys: Tensor | None, image_size: int
) -> tuple[Tensor, Tensor]:
    """Return a click where the predicted mask of each object is wrong.

    Args:
        logits: predicted masks, (M, 1, s, s).
        target: true masks, (M, 1, T, T), from 0 to 1.
        inside: (M, 1, T, T), False in the padding around the image.
        keys: (M,), to choose a random wrong pixel; None: the middle of the largest wrong region.
        image_size: S, the side of the input square, in pixels.

    Returns:
        Clicks (M, 2), (x, y) in pixels of the input square, and their labels (M,), 1 on the object
        and 0 off it. If a mask has no wrong pixel, the click is on the object.

    Source:
        Kirillov et al., "Segment Anything", ICCV 2023: the next point is "sampled uniformly from
        the error region"; Sofiiuk et al., "Reviving iterative training", 2021, for its middle.
    """
    size = target.shape[-1]
    predicted = F.interpolate(logits.float(), (size, size), mode="bilinear") > 0
    true = target > 0.5
    vanished = ~true.flatten(1).any(1).view(-1, 1, 1, 1)  # smaller than half a pixel at this size
    true |= vanished & (target > 0) & (target == target.amax((1, 2, 3), keepdim=True))
    wrong = (predicted != true) & inside  # (M, 1, T, T)
    perfect = ~wrong.flatten(1).any(1)
    wrong = torch.where(perfect.view(-1, 1, 1, 1), true & inside, wrong)
    flat = wrong.flatten(1)  # (M, T * T)
    if keys is None:
        # A pixel is central if much of a window around it is wrong. Computed on a grid of about
        # 64 x 64 cells, because the cost grows with the area of the window.
        side = max(1, size // 64)
        cells = F.avg_pool2d(wrong.double(), side, ceil_mode=True, divisor_override=1)  # counts
        # Sums along rows and columns as matrix products take a tenth of the time of pooling.
        # Integers in float64 are exact in any order, so equal weights stay equal.
        near = cells.new_ones(cells.shape[-2:]).tril(4).triu(-4)  # square; nine ones per row
        around = blurred = cells
        for again in range(1, 5):  # repeated: only the middle of a large region keeps its value
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
    """Convert pixel coordinates from a square of side `size` to one of `image_size`, float32."""
    return (pixels.float() + 0.5) * (image_size / size) - 0.5


def uniform(keys: Tensor, stream: int = 0) -> Tensor:
    """Return a uniform random number from 0 to 1 for each key, (M,) float64.

    The number depends only on the key and the stream.

    Args:
        keys: (M,).
        stream: index of the stream; different streams are independent.

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
    """Return a standard normal random number for each key, (M,) float64; see `uniform`."""
    found: Tensor = torch.special.ndtri(uniform(keys, stream).clamp(1e-6, 1 - 1e-6))
    return found


def most_common(shares: dict[str, float]) -> str:
    """Return the kind of first prompt to evaluate with: "points" if they are trained."""
    return "points" if "points" in shares else max(shares, key=lambda kind: shares[kind])
