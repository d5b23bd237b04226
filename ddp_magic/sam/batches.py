"""From items of a `SamDataset` to the tensors that SAM takes.

`collate` makes a batch that crosses from worker to rank as a few tensors; `prepare` resizes and
normalizes it as the model wants it, on the rank's device.

Letters in shapes: B images, M objects in the batch, K clicks of an object, H x W pixels, S the side
of the square that the model takes, T that of its targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ddp_magic.sam.arrays import PAD
from ddp_magic.sam.data import Item

MEAN = (123.675, 116.28, 103.53)  # ImageNet, in gray levels, as SamProcessor has it
STD = (58.395, 57.12, 57.375)


class Geometry(NamedTuple):
    """How an image becomes the model's square."""

    image_size: int  # S, px
    stretch: bool = False  # to the whole square; otherwise the longest side fits, and is padded
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @property
    def target_size(self) -> int:
        """T, the side at which masks are compared and clicked on, px: SAM draws them at 256."""
        return min(self.image_size, 256)

    def resized(self, size: tuple[int, int], side: int | None = None) -> tuple[int, int]:
        """Return the (height, width) of an image of `size` in the square, or in one of `side`."""
        side = side or self.image_size
        if self.stretch:
            return side, side
        scale = side / max(size)
        return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def collate(batch: Sequence[Item]) -> dict[str, Any]:
    """Put items of a `SamDataset` into one batch, objects in one flat row.

    Returns:
        `images` (B, 3, H, W) uint8, padded at the bottom and the right, or `embeddings`, a list of
        tensors (B, ...), where the items have those; `sizes` (B, 2) true heights and widths;
        `masks` (M, H, W) bool; `image_index` (M,) whose image an object is in; `points` (M, K, 2)
        float32 (x, y); `labels` (M, K), 1 or 0, and -10 where an object has fewer than K clicks;
        `boxes` (M, 4); `keys` (M,).
    """
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
    for item, end in zip(batch, objects.cumsum(0).tolist(), strict=True):
        n, h, w = item["masks"].shape
        masks[end - n : end, :h, :w] = item["masks"]
    out: dict[str, Any] = {"sizes": sizes, "masks": masks, "points": points, "labels": labels}
    out["image_index"] = torch.arange(len(batch)).repeat_interleave(objects)
    out["boxes"] = torch.cat([item["boxes"] for item in batch])
    out["keys"] = torch.cat([item["keys"] for item in batch])
    if "embeddings" in batch[0]:
        maps = zip(*(item["embeddings"] for item in batch), strict=True)
        return out | {"embeddings": [torch.stack(each) for each in maps]}
    out["images"] = torch.empty(
        (len(batch), 3, height, width), dtype=torch.uint8, memory_format=torch.channels_last
    ).zero_()
    for i, item in enumerate(batch):
        _, h, w = item["image"].shape
        out["images"][i, :, :h, :w] = item["image"]
    return out


def load(
    dataset: Dataset[Item],
    numbers: Sequence[int],
    batch_size: int,
    workers: int,
    device: torch.device,
    seed: int = 0,
) -> DataLoader[Any]:
    """Return a loader of batches from `collate`, of some of a set's items, in order.

    Args:
        dataset: of images.
        numbers: of the items.
        batch_size: images a batch.
        workers: processes that load them; 0: this one.
        device: where the batches will go: memory that a GPU can read by itself is pinned.
        seed: of the workers' random numbers, another one in each epoch.
    """
    return DataLoader(
        Subset(dataset, numbers),
        batch_size,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(seed),  # the global one is left alone
    )


def by_size(sizes: Tensor) -> list[tuple[tuple[int, int], Tensor]]:
    """Group rows of equal size, so that each group is one tensor operation.

    Args:
        sizes: (n, 2) heights and widths, on the CPU.

    Returns:
        Pairs of (height, width) and the numbers of the rows that have it.
    """
    unique, group = torch.unique(sizes, dim=0, return_inverse=True)
    return [((int(h), int(w)), torch.where(group == g)[0]) for g, (h, w) in enumerate(unique)]


def prepare(
    batch: dict[str, Any], geometry: Geometry, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Resize, normalize and pad a batch as the model's own processor does, on `device`.

    Args:
        batch: what `collate` made.
        geometry: of the model's square.
        device: where the work is done and the result stays.

    Returns:
        The batch with `pixel_values` (B, 3, S, S) float32 in place of `images`; `points` and
        `boxes` in pixels of that square; `target` (M, 1, T, T), how much of each pixel of a smaller
        such square is in the true mask, and `inside` (M, 1, T, T), False in the padding. `sizes`
        stay on the CPU, where they steer loops.
    """
    sizes, size = batch["sizes"], geometry.target_size
    there = [name for name in ("images", *PER_OBJECT) if name in batch]
    moved = {name: batch[name].to(device, non_blocking=True) for name in there}
    out: dict[str, Any] = {**batch, **moved}
    if "embeddings" in batch:
        out["embeddings"] = [each.to(device, non_blocking=True) for each in batch["embeddings"]]
    elif "images" in batch:
        out["pixel_values"] = _pixel_values(out.pop("images"), sizes, geometry)
    masks, index = out["masks"], batch["image_index"]
    factors = torch.ones(len(sizes), 2)  # (B, 2), x and y
    out["target"] = torch.zeros(len(masks), 1, size, size, device=device)
    out["inside"] = torch.zeros(len(masks), 1, size, size, dtype=torch.bool, device=device)
    for (h, w), numbers in by_size(sizes):
        new_h, new_w = geometry.resized((h, w))
        factors[numbers] = torch.tensor([new_w / w, new_h / h])
        rows = torch.where(torch.isin(index, numbers))[0].to(device, non_blocking=True)
        new_h, new_w = geometry.resized((h, w), size)
        true = _resize(masks[rows, None, :h, :w].to(torch.uint8) * 255, (new_h, new_w)) / 255
        out["target"][rows, :, :new_h, :new_w] = true
        out["inside"][rows, :, :new_h, :new_w] = True
    # (M, 2); padded clicks scale along, and nothing reads them.
    own = factors[index].to(device, non_blocking=True)
    out["points"], out["boxes"] = out["points"] * own[:, None], out["boxes"] * own.repeat(1, 2)
    return out


# Of a batch: a row an object. The last two are there when it is prepared.
PER_OBJECT = ("masks", "image_index", "points", "labels", "boxes", "keys", "target", "inside")


def _pixel_values(images: Tensor, sizes: Tensor, geometry: Geometry) -> Tensor:
    """Return (B, 3, S, S): resized, normalized, zero in the padding."""
    mean, std = (
        torch.tensor(values).view(3, 1, 1).to(images.device, non_blocking=True)
        for values in (geometry.mean, geometry.std)
    )
    side = geometry.image_size
    pixels = torch.empty(len(sizes), 3, side, side, device=images.device)
    for (h, w), numbers in by_size(sizes):
        new_h, new_w = geometry.resized((h, w))
        pixels[numbers, :, new_h:] = 0
        pixels[numbers, :, :, new_w:] = 0
        for number in numbers.tolist():  # straight into its place: passes over memory are the cost
            small = _resize(images[number, None, :, :h, :w], (new_h, new_w))[0]
            pixels[number, :, :new_h, :new_w].copy_(small).sub_(mean).div_(std)
    return pixels


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 images (B, C, H, W) as PIL does, to gray levels in uint8, or float on CUDA."""
    if images.shape[2:] == size:
        return images
    if not len(images):
        return images.new_zeros(0, images.shape[1], *size)
    if images.is_cuda:  # CUDA has no uint8 kernel
        gray = images.to(torch.float32, memory_format=torch.contiguous_format)
        levels = F.interpolate(gray, size, mode="bilinear", antialias=True)
        return levels.round().clamp(0, 255)
    return F.interpolate(images, size, mode="bilinear", antialias=True)
