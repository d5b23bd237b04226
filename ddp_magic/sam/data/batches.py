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
from torch.utils.data import DataLoader, Dataset

from ddp_magic.sam.arguments import check_minimum
from ddp_magic.sam.arrays.items import PAD, Item
from ddp_magic.sam.data.access import item_of

MEAN = (123.675, 116.28, 103.53)  # of ImageNet, in gray levels, as in SamProcessor
STD = (58.395, 57.12, 57.375)


class WithoutInstances(Dataset[Item]):
    """Some items of a data set, without label maps, which cost time if they can be left out."""

    def __init__(self, dataset: Dataset[Item], numbers: Sequence[int]) -> None:
        """Store the data set, and the indices of the items."""
        self.dataset, self.numbers = dataset, numbers

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.numbers)

    def __getitem__(self, index: int) -> Item:
        """Return an item."""
        return item_of(self.dataset, self.numbers[index], instances=False)


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
        the items are of `Sampled`; and `ignored` (B, H, W) bool, if an item has ignored pixels.
    """
    if not len(batch):
        raise ValueError("batch has no items")
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
    if all("instances" in item for item in batch):
        every = torch.full((len(batch), height, width), -1, dtype=torch.int32)
        out["instances"] = _pasted(every, [item["instances"] for item in batch])
    out["image_index"] = torch.arange(len(batch)).repeat_interleave(objects)
    out["boxes"] = torch.cat([item["boxes"] for item in batch])
    out["keys"] = torch.cat([item["keys"] for item in batch])
    if all("index" in item for item in batch):
        out["index"] = torch.tensor([item["index"] for item in batch])
    if any("ignored" in item for item in batch):
        none = torch.zeros(0, 0, dtype=torch.bool)
        every = torch.zeros(len(batch), height, width, dtype=torch.bool)
        out["ignored"] = _pasted(every, [item.get("ignored", none) for item in batch])
    if "embeddings" in batch[0]:
        maps = zip(*(item["embeddings"] for item in batch), strict=True)
        return out | {"embeddings": [torch.stack(each) for each in maps]}
    images = torch.empty(
        (len(batch), 3, height, width), dtype=torch.uint8, memory_format=torch.channels_last
    ).zero_()
    return out | {"images": _pasted(images, [item["image"] for item in batch])}


def _pasted(canvas: Tensor, pictures: Sequence[Tensor]) -> Tensor:
    """Copy pictures (..., h, w) to the top left of those of `canvas`, (n, ..., H, W)."""
    for own, picture in zip(canvas, pictures, strict=True):
        own[..., : picture.shape[-2], : picture.shape[-1]] = picture
    return canvas


def load(
    dataset: Dataset[Item],
    numbers: Sequence[int],
    batch_size: int,
    workers: int,
    device: torch.device,
    seed: int = 0,
) -> DataLoader[Any]:
    """Return a data loader of batches from `collate`, for some items in the given order.

    They have no label maps, `instances`.

    Args:
        dataset: the data set.
        numbers: indices of the items.
        batch_size: number of images per batch.
        workers: number of data loading processes; 0: load in this process.
        device: device of the rank; memory is pinned if it is a GPU.
        seed: seed for the random numbers of the data loading processes.
    """
    check_minimum(1, batch_size=batch_size)
    check_minimum(0, workers=workers)
    return DataLoader(
        WithoutInstances(dataset, numbers),
        int(batch_size),  # torch takes no integers of NumPy
        collate_fn=collate,
        num_workers=int(workers),
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(seed),  # the global generator does not change
    )


def by_size(sizes: Tensor) -> list[tuple[tuple[int, int], Tensor]]:
    """Group rows of equal size, so that each group needs one tensor operation.

    Args:
        sizes: heights and widths, (n, 2), on the CPU.

    Returns:
        Pairs of (height, width) and the indices of the rows with this size.
    """
    unique, group = torch.unique(sizes, dim=0, return_inverse=True)
    return [((int(h), int(w)), torch.where(group == g)[0]) for g, (h, w) in enumerate(unique)]


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
    if not isinstance(geometry, Geometry):
        raise TypeError(
            f"geometry must be PromptedSam(model).geometry, not a {type(geometry).__name__}"
        )
    sizes, size = batch["sizes"], geometry.target_size
    there = [name for name in ("images", *PER_OBJECT) if name in batch]
    moved = {name: batch[name].to(device, non_blocking=True) for name in there}
    out: dict[str, Any] = {**batch, **moved}
    if "embeddings" in batch:
        out["embeddings"] = [each.to(device, non_blocking=True) for each in batch["embeddings"]]
    elif "images" in batch:
        out["pixel_values"] = _pixel_values(out.pop("images"), sizes, geometry)
    masks, index = out["masks"], batch["image_index"]
    if "instances" in batch:
        every = batch["instances"].to(device, non_blocking=True)
        out["instances"] = torch.full((len(sizes), size, size), -1, device=device)
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
        if "instances" in batch:
            y, x = (
                ((torch.arange(new, device=device) + 0.5) * (old / new)).long()
                for new, old in ((new_h, h), (new_w, w))
            )  # the nearest pixel
            own = numbers.to(device, non_blocking=True)
            out["instances"][own, :new_h, :new_w] = every[own[:, None, None], y[:, None], x].long()
        out["inside"][rows, :, :new_h, :new_w] = True
    if "ignored" in batch:
        out["counted"] = _counted(batch, geometry)[index].to(device)  # (M, 1, T, T)
        out["inside"] &= out["counted"]
        out["target"] = out["target"] * out["counted"]
    # (M, 2); clicks that are padding are scaled too, but never used.
    own = factors[index].to(device, non_blocking=True)
    out["points"], out["boxes"] = out["points"] * own[:, None], out["boxes"] * own.repeat(1, 2)
    return out


def _counted(batch: dict[str, Any], geometry: Geometry) -> Tensor:
    """Return for each image, (B, 1, T, T), False where at least half of a pixel is ignored."""
    side = geometry.target_size
    counted = torch.ones(len(batch["sizes"]), 1, side, side, dtype=torch.bool)
    for (h, w), numbers in by_size(batch["sizes"]):
        new_h, new_w = geometry.resized((h, w), side)
        ignored = batch["ignored"][numbers, None, :h, :w].to(torch.uint8) * 255
        counted[numbers, :, :new_h, :new_w] = _resize(ignored, (new_h, new_w)) < 128
    return counted


# The entries of a batch with one row per object; `prepare` adds the last ones.
PER_OBJECT: tuple[str, ...] = (
    "masks",
    "image_index",
    "points",
    "labels",
    "boxes",
    "keys",
    "target",
    "inside",
)
PER_OBJECT += ("counted",)  # only if there are ignored pixels


def _pixel_values(images: Tensor, sizes: Tensor, geometry: Geometry) -> Tensor:
    """Return resized and normalized images (B, 3, S, S), zero in the padding."""
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
        for number in numbers.tolist():  # one at a time: the time depends on the memory traffic
            small = _resize(images[number, None, :, :h, :w], (new_h, new_w))[0]
            pixels[number, :, :new_h, :new_w].copy_(small).sub_(mean).div_(std)
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
