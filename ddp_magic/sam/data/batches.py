"""Batches: from items of a `SamDataset` to the input of a model.

`collate` combines items into a batch of a few tensors, in a data loading process; `prepare` resizes
and normalizes a batch on the device of the rank.

In shapes, B is the number of images, M the number of objects in the batch, K the number of clicks
of an object, H x W the size in pixels, S the side of the input square of the model, and T the side
of the target masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_magic.sam.arrays.items import PAD, Item, check_item

MEAN = (123.675, 116.28, 103.53)  # of ImageNet, in gray levels, as in SamProcessor
STD = (58.395, 57.12, 57.375)

# The entries of a batch with one row per object, and those that `prepare` adds.
PER_OBJECT = ("masks", "image_index", "points", "labels", "boxes", "keys")
ADDED = ("target", "inside", "counted")


class Geometry(NamedTuple):
    """How an image is resized to the input square of a model."""

    image_size: int  # S, px
    stretch: bool = False  # to the whole square; otherwise the aspect ratio stays, with padding
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @property
    def target_size(self) -> int:
        """T, the side of the target masks in pixels: at most 256, as the masks of SAM."""
        return min(self.image_size, 256)

    def resized(self, size: tuple[int, int], side: int | None = None) -> tuple[int, int]:
        """Return the (height, width) of an image of `size` when resized to S, or to `side`."""
        side = side or self.image_size
        if self.stretch:
            return side, side
        scale = side / max(size)
        return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def collate(batch: Sequence[Item]) -> dict[str, Any]:
    """Combine items of a `SamDataset` into one batch; objects of all images are concatenated.

    Returns:
        `images` (B, 3, H, W) uint8, padded at the bottom and the right, or `embeddings`, a list of
        tensors (B, ...), if the items have embeddings; `sizes` (B, 2), the original heights and
        widths; `masks` (M, H, W) bool; `image_index` (M,), the image of each object; `points` (M,
        K, 2) float32 (x, y); `labels` (M, K), 1 or 0, and -10 for padding if an object has fewer
        than K clicks; `boxes` (M, 4); `keys` (M,); `index` (B,), the images in the data set, if
        the items are of `Sampled`; `instances` (B, H, W), if all items have label maps; and
        `ignored` (B, H, W) bool, if an item has ignored pixels.
    """
    if not len(batch):
        raise ValueError("batch has no items")
    for number, item in enumerate(batch):
        check_item(item, f"item {number} of a batch")
    sizes = torch.tensor([item["masks"].shape[1:] for item in batch])  # (B, 2)
    height, width = sizes.amax(0).tolist()
    objects = torch.tensor([len(item["masks"]) for item in batch])  # (B,)
    counts = torch.cat([item["counts"] for item in batch])  # (M,)
    given = torch.arange(int(counts.max()) if len(counts) else 0) < counts[:, None]  # (M, K)
    points = torch.zeros(*given.shape, 2)
    points[given] = torch.cat([item["points"] for item in batch])
    labels = torch.full(given.shape, PAD)
    labels[given] = torch.cat([item["labels"] for item in batch])
    masks = torch.zeros(int(objects.sum()), height, width, dtype=torch.bool)
    _paste(torch.split(masks, objects.tolist()), [item["masks"] for item in batch])
    out: dict[str, Any] = {"sizes": sizes, "masks": masks, "points": points, "labels": labels}
    out["image_index"] = torch.arange(len(batch)).repeat_interleave(objects)
    out |= {name: torch.cat([item[name] for item in batch]) for name in ("boxes", "keys")}
    if all("index" in item for item in batch):
        out["index"] = torch.tensor([item["index"] for item in batch])
    if all("instances" in item for item in batch):
        out["instances"] = torch.full((len(batch), height, width), -1, dtype=torch.int32)
        _paste(out["instances"], [item["instances"] for item in batch])
    if any("ignored" in item for item in batch):
        none = torch.zeros(0, 0, dtype=torch.bool)
        out["ignored"] = torch.zeros(len(batch), height, width, dtype=torch.bool)
        _paste(out["ignored"], [item.get("ignored", none) for item in batch])
    if "embeddings" in batch[0]:
        maps = zip(*(item["embeddings"] for item in batch), strict=True)
        return out | {"embeddings": [torch.stack(each) for each in maps]}
    images = torch.zeros(len(batch), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    _paste(images, [item["image"] for item in batch])
    return out | {"images": images}


def _paste(canvas: Sequence[Tensor] | Tensor, pictures: Sequence[Tensor]) -> None:
    """Copy pictures (..., h, w) to the top left of those of `canvas`, (..., H, W) each."""
    for own, picture in zip(canvas, pictures, strict=True):
        own[..., : picture.shape[-2], : picture.shape[-1]] = picture


def prepare(
    batch: dict[str, Any], geometry: Geometry, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Resize, normalize and pad a batch on `device`, as the processor of the model does.

    Args:
        batch: a batch from `collate`.
        geometry: how images are resized for the model.
        device: device for the computation and the result.

    Returns:
        The batch with `pixel_values` (B, 3, S, S) float32 instead of `images`; `points` and `boxes`
        in pixels of this square; `target` (M, 1, T, T), the fraction of each pixel that is in the
        true mask, at a lower resolution; and `inside` (M, 1, T, T), False in the padding
        and in ignored pixels. If there are any, `counted` (M, 1, T, T) is False in them. `sizes`
        stays on the CPU, because loops depend on it.
    """
    is_batch = hasattr(batch, "keys") and "sizes" in batch
    if not (is_batch and isinstance(geometry, Geometry)):
        what = "an item" if hasattr(batch, "keys") and not is_batch else type(batch).__name__
        raise TypeError(
            "prepare needs a batch from collate and PromptedSam(model).geometry, not "
            f"{what} and {type(geometry).__name__}"
        )
    sizes, side, index = batch["sizes"], geometry.target_size, batch["image_index"]
    names = [name for name in ("images", "instances", "ignored", *PER_OBJECT) if name in batch]
    out: dict[str, Any] = {**batch, **{n: batch[n].to(device, non_blocking=True) for n in names}}
    if "embeddings" in batch:
        out["embeddings"] = [each.to(device, non_blocking=True) for each in batch["embeddings"]]
    if "images" in batch:
        out["pixel_values"] = _pixel_values(out.pop("images"), sizes, geometry)
    every, ignored, masks = out.get("instances"), out.get("ignored"), out["masks"]
    shape, factors = (len(masks), 1, side, side), torch.ones(len(sizes), 2)  # (B, 2), x and y
    out["target"] = torch.zeros(shape, device=device)
    out["inside"] = torch.zeros(shape, dtype=torch.bool, device=device)
    if every is not None:
        out["instances"] = torch.full((len(sizes), side, side), -1, device=device)
    if ignored is not None:
        out["counted"] = torch.ones_like(out["inside"])
    ends = torch.bincount(index, minlength=len(sizes)).cumsum(0).tolist()
    for number, (start, end, (h, w)) in enumerate(zip([0, *ends], ends, sizes.tolist())):  # noqa: B905
        new_h, new_w = geometry.resized((h, w))
        factors[number] = torch.tensor([new_w / w, new_h / h])
        new_h, new_w = geometry.resized((h, w), side)
        place = (slice(start, end), slice(None), slice(new_h), slice(new_w))
        true = masks[start:end, None, :h, :w].to(torch.uint8) * 255
        out["target"][place] = _resize(true, (new_h, new_w)) / 255
        out["inside"][place] = True
        if ignored is not None:  # at least half of a pixel
            share = ignored[number, None, None, :h, :w].to(torch.uint8) * 255
            out["counted"][place] = _resize(share, (new_h, new_w)) < 128
        if every is not None:  # the nearest pixel
            y, x = (
                ((torch.arange(new, device=device) + 0.5) * (old / new)).long()
                for new, old in ((new_h, h), (new_w, w))
            )
            out["instances"][number, :new_h, :new_w] = every[number, y[:, None], x].long()
    if ignored is not None:
        out["inside"] &= out["counted"]
        out["target"] *= out["counted"]
    # (M, 2); clicks that are padding are scaled too, but never used.
    scale = factors[index].to(device, non_blocking=True)
    out["points"], out["boxes"] = out["points"] * scale[:, None], out["boxes"] * scale.repeat(1, 2)
    return out


def _pixel_values(images: Tensor, sizes: Tensor, geometry: Geometry) -> Tensor:
    """Return resized and normalized images (B, 3, S, S), zero in the padding."""
    mean, std = (torch.tensor(x).view(3, 1, 1).to(images.device) for x in geometry[2:])
    side = geometry.image_size
    pixels = torch.zeros(len(sizes), 3, side, side, device=images.device)
    for number, (h, w) in enumerate(sizes.tolist()):  # the time depends on the memory traffic
        new = geometry.resized((h, w))
        small = _resize(images[number, None, :, :h, :w], new)[0]
        pixels[number, :, : new[0], : new[1]].copy_(small).sub_(mean).div_(std)
    return pixels


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 images (B, C, H, W) as PIL does; the result is uint8, or float32 on CUDA."""
    if images.shape[2:] == size:
        return images
    if not len(images):
        return images.new_zeros(0, images.shape[1], *size)
    if images.is_cuda:  # F.interpolate has no uint8 kernel for CUDA
        gray = images.to(torch.float32, memory_format=torch.contiguous_format)
        levels = F.interpolate(gray, size, mode="bilinear", antialias=True)
        return levels.round().clamp(0, 255)
    return F.interpolate(images, size, mode="bilinear", antialias=True)
