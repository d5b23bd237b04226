"""From arrays and clicks to the tensors that SAM takes.

Three steps: `SamDataset` (one image, its prompted objects, uint8 at its own size), `collate`
(a batch that crosses from worker to rank as a few tensors), `prepare` (SAM's resizing and
normalization, on the rank's device).

Letters in shapes: B images, M objects in the batch, N objects of one image, K clicks of an object,
H x W pixels, S the side of the square that the model takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ddp_magic.prelude.process_group import print0

FOREGROUND, PAD = 1, -10  # SAM's labels of a click on the object and of "no click here"
MEAN = (123.675, 116.28, 103.53)  # ImageNet, in gray levels, as SamProcessor has it
STD = (58.395, 57.12, 57.375)

Images = Sequence[ArrayLike] | NDArray[Any]


class SamDataset(Dataset[dict[str, Any]]):
    """Images, their masks, and the clicks that ask for objects.

    A click asks for the object under it. Clicks on the same object of the same image are clicks of
    one prompt. An image without clicks stays in the set, with no objects; objects without clicks
    are not asked for.
    """

    def __init__(self, images: Images, masks: Images, coordinates: ArrayLike) -> None:
        """Check everything once, so that a mistake shows here and not as a bad score.

        Args:
            images: n images (H, W) or (H, W, 3), of equal or unequal sizes, all of one type: uint8
                as it is; another type is brought to 0..255 by one rule for the whole set, printed.
            masks: n label maps (H, W), 0 = background, each other number an object; or boolean,
                0/1 or 0/255 masks of a single object.
            coordinates: (P, 3), rows (image number, y, x) in pixels; whole numbers are pixel
                centers.

        Raises:
            ValueError: Images and masks do not fit, or a click does not point at an object. The
                message names the row.
        """
        sizes = _check_pairs(images, masks)  # (n, 2)
        self.images, self.masks = images, masks
        self.window = gray_window(images)
        rows = np.asarray(coordinates, dtype=np.float64)
        rows = rows.reshape(-1, 3) if rows.size == 0 else rows
        _check_coordinates(rows, sizes)
        # One sort here, so that an item finds its clicks without looking through all of them.
        order = np.argsort(rows[:, 0], kind="stable")
        rows = rows[order]  # (P, 3)
        self.starts = np.searchsorted(rows[:, 0], np.arange(len(sizes) + 1))  # (n + 1,)
        self.points = rows[:, [2, 1]].astype(np.float32)  # (P, 2), (x, y) as SAM takes them
        self.objects = self._objects_under(rows, order)  # (P,)

    def _objects_under(self, rows: NDArray[Any], order: NDArray[Any]) -> NDArray[Any]:
        """Return the label under each click, (P,)."""
        labels = np.zeros(len(rows), dtype=np.int64)
        pixels = np.floor(rows[:, 1:] + 0.5).astype(np.int64)  # (P, 2)
        for image in range(len(self)):
            own = slice(self.starts[image], self.starts[image + 1])
            if own.start < own.stop:
                labels[own] = np.asarray(self.masks[image])[pixels[own, 0], pixels[own, 1]]
        for bad in np.flatnonzero(labels == 0)[:1]:
            image, y, x = rows[bad]
            raise ValueError(
                f"coordinates row {order[bad]}: (image {image:g}, y {y:g}, x {x:g}) "
                "lies on background; the columns are (image, y, x)"
            )
        return labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one image and its prompted objects.

        Returns:
            `image` (3, H, W) uint8, `masks` (N, H, W) bool, `points` a list of N tensors (K_i, 2)
            float32 (x, y), in the order of the objects' first clicks; `keys` (N,), numbers that no
            other object of the set has.
        """
        index = range(len(self))[index]  # negative numbers, and IndexError past the end
        own = slice(self.starts[index], self.starts[index + 1])
        labels, points = self.objects[own], self.points[own]  # (P_i,), (P_i, 2)
        mask = np.asarray(self.masks[index])  # (H, W)
        objects = list(dict.fromkeys(labels.tolist()))  # N labels
        masks = np.zeros((len(objects), *mask.shape), dtype=bool)
        for row, label in enumerate(objects):
            masks[row] = mask == label
        return {
            "image": torch.from_numpy(to_rgb(self.images[index], self.window)),
            "masks": torch.from_numpy(masks),
            "points": [torch.from_numpy(points[labels == label]) for label in objects],
            "keys": int(own.start) + torch.arange(len(objects)),
        }


class Turned(Dataset[dict[str, Any]]):
    """A `SamDataset` whose items are mirrored and turned by quarters, anew in each epoch.

    What happens to an image, and where it is clicked on later, follows from seed, epoch and its
    number alone: it is the same for any number of ranks and workers, and after an interruption.
    Set `epoch` when an epoch begins.
    """

    def __init__(self, dataset: SamDataset, seed: int, *, augment: bool) -> None:
        """Wrap a dataset.

        Args:
            dataset: what to turn.
            seed: of the choices.
            augment: whether to turn anything.
        """
        self.dataset, self.seed, self.augment, self.epoch = dataset, seed, augment, 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one item of the dataset, perhaps in another of 8 positions."""
        item = self.dataset[index]
        item["keys"] = item["keys"] + (self.seed * 10_000 + self.epoch) * 2**32
        if not self.augment:
            return item
        position = int(np.random.default_rng([self.seed, self.epoch, index]).integers(8))
        return turn(item, mirror=position >= 4, quarters=position % 4)


def turn(item: dict[str, Any], *, mirror: bool, quarters: int) -> dict[str, Any]:
    """Mirror an item of a `SamDataset` left to right, then turn it counterclockwise.

    Args:
        item: image, masks and points.
        mirror: whether to.
        quarters: number of quarter turns.

    Returns:
        The same in its new position.
    """
    image, masks, points = item["image"], item["masks"], item["points"]
    if mirror:
        right = image.shape[2] - 1
        image, masks = image.flip(2), masks.flip(2)
        points = [torch.stack([right - p[:, 0], p[:, 1]], 1) for p in points]
    for _ in range(quarters):
        right = image.shape[2] - 1
        image, masks = image.rot90(1, (1, 2)), masks.rot90(1, (1, 2))
        points = [torch.stack([p[:, 1], right - p[:, 0]], 1) for p in points]
    return {**item, "image": image, "masks": masks, "points": points}


def _check_pairs(images: Images, masks: Images) -> NDArray[np.int64]:
    """Refuse images and masks that do not fit; return the sizes (n, 2)."""
    if len(images) != len(masks):
        raise ValueError(f"{len(images)} images but {len(masks)} masks")
    sizes = np.zeros((len(images), 2), dtype=np.int64)
    for i in range(len(images)):
        shape, mask = np.shape(images[i]), np.asarray(masks[i])
        if len(shape) not in {2, 3} or (len(shape) == 3 and shape[-1] not in {1, 3}):
            hint = "; channels come last" if len(shape) == 3 and shape[0] in {1, 3} else ""
            raise ValueError(f"image {i} has shape {shape}, not (H, W) or (H, W, 3){hint}")
        if shape[:2] != mask.shape:
            raise ValueError(f"image {i} has shape {shape}, but its mask {mask.shape}")
        if mask.dtype.kind == "f" and not np.array_equal(mask, np.rint(mask)):
            raise ValueError(f"mask {i} holds fractions; a mask is a map of whole labels, or bool")
        sizes[i] = mask.shape
    return sizes


def _check_coordinates(rows: NDArray[Any], sizes: NDArray[np.int64]) -> None:
    """Refuse rows that name no pixel of any image."""
    if rows.ndim != 2 or rows.shape[1] != 3:
        raise ValueError(f"coordinates have shape {rows.shape}, not (P, 3): (image, y, x)")
    image = rows[:, 0]
    for row in np.flatnonzero(~((image >= 0) & (image < len(sizes)) & (image == np.rint(image)))):
        raise ValueError(
            f"coordinates row {row}: image number {image[row]:g} is not one of "
            f"0..{len(sizes) - 1}; the columns are (image, y, x)"
        )
    ends = sizes[image.astype(np.int64)] - 0.5  # (P, 2)
    for row in np.flatnonzero(~((rows[:, 1:] >= -0.5) & (rows[:, 1:] < ends)).all(1)):
        number, y, x = rows[row]
        check_click(y, x, sizes[int(number)], f"coordinates row {row}: image {number:g}, ")


def check_click(y: float, x: float, size: Sequence[int] | NDArray[Any], where: str = "") -> None:
    """Refuse a click outside an image of `size` (H, W) pixels.

    Raises:
        ValueError: The click lies outside; the message tells whether swapped axes would fit.
    """
    height, width = size
    if not (-0.5 <= y < height - 0.5 and -0.5 <= x < width - 0.5):
        fits = -0.5 <= x < height - 0.5 and -0.5 <= y < width - 0.5
        raise ValueError(
            f"{where}y {y:g}, x {x:g} lies outside {height} x {width} pixels"
            + (" (are y and x swapped?)" if fits else "")
        )


def gray_window(images: Images) -> tuple[float, float] | None:
    """Decide once, for all images, which values become 0 and 255, and say so.

    Args:
        images: images of one numeric type.

    Returns:
        (low, high) in the images' own units; None for uint8 images, which stay as they are.

    Raises:
        ValueError: The types differ, or there are values that are not finite.
    """
    types = {np.asarray(image).dtype for image in images}
    if types <= {np.dtype(np.uint8)}:
        return None
    if len(types) > 1:
        raise ValueError(f"images of different types: {', '.join(sorted(map(str, types)))}")
    kind = types.pop()
    low = min(float(np.min(image)) for image in images)
    high = max(float(np.max(image)) for image in images)
    if not np.isfinite([low, high]).all():
        raise ValueError("images hold values that are not finite")
    if kind.kind in "bf" and low >= 0 and high <= 1:
        window, rule = (0.0, 1.0), "multiplied by 255"
    elif low >= 0 and high <= 255:
        window, rule = (0.0, 255.0), "taken as gray levels 0..255"
    else:  # microscopes have hot pixels: percentiles, not extremes; at most ~4000 pixels an image
        flat = [np.asarray(image).ravel() for image in images]
        sample = np.concatenate([pixels[:: 1 + pixels.size // 4096] for pixels in flat])
        first, last = np.percentile(sample, (0.1, 99.9))
        window = (float(first), float(last))
        rule = f"{first:g}..{last:g} (0.1 % and 99.9 % of the pixels) stretched to 0..255"
    print0(f"images: {kind}, {low:g}..{high:g}; {rule}")
    return window


def to_rgb(image: ArrayLike, window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Bring one image to SAM's form.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3).
        window: the values that become 0 and 255; None: uint8 as it is.

    Returns:
        (3, H, W) uint8, a copy.
    """
    pixels = np.asarray(image)
    if window is not None:
        low, high = window
        gain = 255 / max(high - low, 1e-12)
        pixels = np.rint(np.clip((pixels.astype(np.float32) - low) * gain, 0, 255))
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.array(np.broadcast_to(channels_first, (3, *pixels.shape[:2])), dtype=np.uint8)


def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Put items of a `SamDataset` into one batch, objects in one flat row.

    Returns:
        `images` (B, 3, H, W) uint8, padded at the bottom and the right; `sizes` (B, 2) their true
        heights and widths; `masks` (M, H, W) bool; `image_index` (M,) whose image an object is in;
        `points` (M, K, 2) float32 (x, y); `labels` (M, K), 1 for a click, -10 where an object has
        fewer than K; `keys` (M,).
    """
    sizes = torch.tensor([item["image"].shape[1:] for item in batch])  # (B, 2)
    height, width = sizes.amax(0).tolist()
    points = [clicks for item in batch for clicks in item["points"]]  # M tensors (K_i, 2)
    counts = torch.tensor([len(item["points"]) for item in batch])  # (B,)
    most = max((len(clicks) for clicks in points), default=1)
    out = {
        "images": torch.zeros(len(batch), 3, height, width, dtype=torch.uint8),
        "sizes": sizes,
        "masks": torch.zeros(len(points), height, width, dtype=torch.bool),
        "image_index": torch.arange(len(batch)).repeat_interleave(counts),
        "points": torch.zeros(len(points), most, 2),
        "labels": torch.full((len(points), most), PAD),
        "keys": torch.cat([item["keys"] for item in batch]),
    }
    first = 0
    for i, item in enumerate(batch):
        (h, w), n = item["image"].shape[1:], len(item["points"])
        out["images"][i, :, :h, :w] = item["image"]
        out["masks"][first : first + n, :h, :w] = item["masks"]
        first += n
    for m, clicks in enumerate(points):
        out["points"][m, : len(clicks)] = clicks
        out["labels"][m, : len(clicks)] = FOREGROUND
    return out


def by_size(sizes: Tensor) -> list[tuple[tuple[int, int], Tensor]]:
    """Group rows of equal size, so that each group is one tensor operation.

    Args:
        sizes: (n, 2) heights and widths, on the CPU.

    Returns:
        Pairs of (height, width) and the numbers of the rows that have it.
    """
    unique, group = torch.unique(sizes, dim=0, return_inverse=True)
    return [((int(h), int(w)), torch.where(group == g)[0]) for g, (h, w) in enumerate(unique)]


def resized(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Return the (height, width) after the longest side was brought to `image_size` pixels."""
    scale = image_size / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def prepare(
    batch: dict[str, Tensor], image_size: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Resize, normalize and pad a batch as SamProcessor does, on `device`.

    Args:
        batch: what `collate` made.
        image_size: S, the side of the model's square, in pixels.
        device: where the work is done and the result stays.

    Returns:
        The batch without `images`, but with `pixel_values` (B, 3, S, S) float32; `points` are in
        pixels of that square. `sizes` stay on the CPU, where they steer loops.
    """
    sizes, image_index = batch["sizes"], batch["image_index"]
    images = batch["images"].to(device, non_blocking=True)
    out = {
        key: batch[key].to(device) for key in ("masks", "image_index", "points", "labels", "keys")
    }
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    pixels = torch.zeros(len(sizes), 3, image_size, image_size, device=device)
    factors = torch.ones(len(sizes), 2)  # (B, 2), x and y
    for (h, w), rows in by_size(sizes):
        new_h, new_w = resized((h, w), image_size)
        small = _resize(images[rows.to(device), :, :h, :w], (new_h, new_w))
        pixels[rows.to(device), :, :new_h, :new_w] = (small - mean) / std
        factors[rows] = torch.tensor([new_w / w, new_h / h])
    # Padded clicks scale along; nothing reads them.
    out["points"] = out["points"] * factors[image_index].to(device)[:, None]
    return {**out, "pixel_values": pixels, "sizes": sizes}


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 images (B, 3, H, W) as PIL does; float gray levels come out."""
    if images.is_cuda:  # CUDA has no uint8 kernel
        levels = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        return levels.round().clamp(0, 255)
    return F.interpolate(images, size, mode="bilinear", antialias=True).float()
