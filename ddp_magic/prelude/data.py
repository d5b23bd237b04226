"""From images, masks and prompts to the tensors that SAM takes.

Three steps: `SamDataset` (one image, its objects, uint8 at its own size), `collate` (a batch that
crosses from worker to rank as a few tensors), `prepare` (resizing and normalization as the model
wants it, on the rank's device).

Letters in shapes: B images, M objects in the batch, N objects of one image, K clicks of an object,
P clicks, H x W pixels, S the side of the square that the model takes, T that of its targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ddp_magic.prelude.files import Files, check_names, open_files
from ddp_magic.prelude.process_group import print0

FOREGROUND, BACKGROUND, PAD = 1, 0, -10  # SAM's labels of a click, and of "no click here"
MEAN = (123.675, 116.28, 103.53)  # ImageNet, in gray levels, as SamProcessor has it
STD = (58.395, 57.12, 57.375)

Images = Sequence[ArrayLike] | NDArray[Any] | str | Path
Item = dict[str, Any]


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


class SamDataset(Dataset[Item]):
    """Images, their masks, and the prompts that ask for objects.

    A click asks for the object under it; clicks on the same object of the same image are clicks of
    one prompt, and so is a box around it. An image without prompts stays in the set, with no
    objects; objects without prompts are not asked for. With neither clicks nor boxes in the whole
    set all objects are asked for, and clicked on anew in each epoch.
    """

    def __init__(
        self,
        images: Images,
        masks: Images,
        coordinates: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
    ) -> None:
        """Check everything once, so that a mistake shows here and not as a bad score.

        Args:
            images: n images (H, W) or (H, W, 3), of equal or unequal sizes, all of one type: uint8
                as it is; another type is brought to 0..255 by one rule for the whole set, printed.
                Or a folder, or files: PNG, JPEG, TIFF (each page), NIfTI (each slice).
            masks: n label maps (H, W), 0 = background, each other number an object; boolean, 0/1 or
                0/255 masks of a single object; or stacks (N, H, W), one mask an object, which may
                overlap. Or a folder, or files, of label maps.
            coordinates: (P, 3) or (P, 4), rows (image number, y, x) in pixels, with or without a
                label, 1 on the object, 0 off it; whole numbers are pixel centers. A click with
                label 0 belongs to the object of the click before it. In a stack the smallest mask
                under a click is meant.
            boxes: (Q, 5), rows (image number, y0, x0, y1, x1) in pixels, each around an object.

        Raises:
            ValueError: Images, masks and prompts do not fit. The message names the row, and shows
                the mask with the click in it.
            FileNotFoundError: A file is missing.
        """
        self.images, self.masks = _sequence(images, labels=False), _sequence(masks, labels=True)
        if isinstance(self.images, Files) and isinstance(self.masks, Files):
            check_names(self.images, self.masks)
        if len(self.images) != len(self.masks):
            raise ValueError(f"{len(self.images)} images but {len(self.masks)} masks")
        if not (isinstance(self.images, Files) or isinstance(self.masks, Files)):
            for i in range(len(self.images)):
                _check_pair(i, np.shape(self.images[i]), np.asarray(self.masks[i]))
        self.window = gray_window(self.images)
        self.drawn = coordinates is None and boxes is None
        clicks = _rows(
            coordinates, "coordinates", len(self.images), (3, 4), "(image, y, x[, label])"
        )
        frames = _rows(boxes, "boxes", len(self.images), (5,), "(image, y0, x0, y1, x1)")
        of_click = self._objects_clicked(clicks)  # (P,)
        of_frame = self._objects_framed(frames)  # (Q,)
        self._index(clicks, of_click, frames, of_frame)

    def _index(
        self,
        clicks: NDArray[Any],
        of_click: NDArray[Any],
        frames: NDArray[Any],
        of_frame: NDArray[Any],
    ) -> None:
        """Sort prompts by object once, so that an item's are slices, found without a search."""
        image = np.concatenate([clicks[:, 0], frames[:, 0]]).astype(np.int64)
        label = np.concatenate([of_click, of_frame])
        order = np.argsort(image, kind="stable")
        pairs = np.stack([image, label], 1)[order]  # (P + Q, 2)
        unique, first, inverse = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        by_first = np.argsort(first)  # objects in the order of their first prompt, image by image
        number = np.empty(len(order), dtype=np.int64)
        number[order] = np.argsort(by_first)[inverse.reshape(-1)]  # object of each prompt
        asked = unique[by_first]  # (objects, 2)
        ends = np.arange(len(self.images) + 1)
        self.object_labels = asked[:, 1]
        self.object_starts = np.searchsorted(asked[:, 0], ends)  # (n + 1,)
        own = number[: len(clicks)]
        order = np.argsort(own, kind="stable")
        self.points = clicks[order][:, [2, 1]].astype(np.float32)  # (P, 2), (x, y) as SAM's
        self.point_labels = clicks[order, 3].astype(np.int64)  # (P,)
        self.point_counts = np.bincount(own, minlength=len(asked)).astype(np.int64)
        self.point_starts = np.searchsorted(clicks[order, 0], ends)  # (n + 1,)
        self.boxes = np.full((len(asked), 4), np.nan, dtype=np.float32)  # (x0, y0, x1, y1)
        self.boxes[number[len(clicks) :]] = frames[:, [2, 1, 4, 3]]

    def _objects_clicked(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the label of the object that each click belongs to, (P,)."""
        labels = np.zeros(len(rows), dtype=np.int64)
        for image, numbers in _by_image(rows):
            mask, belongs = np.asarray(self.masks[image]), 0
            _check_pair(image, None, mask)
            for row in numbers:
                _, y, x, label = rows[row]
                where = f"coordinates row {row}: image {image}, "
                check_click(y, x, mask.shape[-2:], where)
                if label == FOREGROUND:
                    belongs = _object_at(mask, y, x)
                    if not belongs:
                        raise ValueError(_on_background(row, rows[row], mask))
                elif not belongs:
                    raise ValueError(f"{where}label 0, but no click on an object before it")
                elif _object_mask(mask, belongs)[_pixel(y), _pixel(x)]:
                    sketch = _sketch(_object_mask(mask, belongs), y, x)
                    raise ValueError(
                        f"{where}label 0 lies on the object it should be off\n{sketch}"
                    )
                labels[row] = belongs
        return labels

    def _objects_framed(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the label of the object that each box is around, (Q,)."""
        labels = np.zeros(len(rows), dtype=np.int64)
        for image, numbers in _by_image(rows):
            mask = np.asarray(self.masks[image])
            _check_pair(image, None, mask)
            found = _object_labels(mask)
            around = np.stack([_box_of(_object_mask(mask, label)) for label in found])  # (N, 4)
            for row in numbers:
                y0, x0, y1, x1 = rows[row, 1:]
                where = f"boxes row {row}: image {image}, "
                check_click(y0, x0, mask.shape[-2:], where)
                check_click(y1, x1, mask.shape[-2:], where)
                fits = _box_iou(np.array([x0, y0, x1, y1]), around)
                if not (y0 < y1 and x0 < x1) or fits.max(initial=0) < 0.3:
                    raise ValueError(
                        f"{where}y {y0:g}..{y1:g}, x {x0:g}..{x1:g} is not around any object; "
                        f"the columns are (image, y0, x0, y1, x1)\n"
                        + _sketch(mask != 0, (y0 + y1) / 2, (x0 + x1) / 2)
                    )
                labels[row] = found[fits.argmax()]
        return labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """Return one image and its objects.

        Returns:
            `image` (3, H, W) uint8, `masks` (N, H, W) bool, and the prompts: `points` (P, 2)
            float32 (x, y), object by object, `labels` (P,), 1 on and 0 off the object, `counts`
            (N,) how many clicks an object has, `boxes` (N, 4) float32 (x0, y0, x1, y1), NaN where
            there is none; `keys` (N,), numbers that no other object of the set has.
        """
        target, image = self.target(index), self.image(index)
        _check_pair(index, image.shape[1:], target["masks"].numpy())
        return {**target, "image": torch.from_numpy(image)}

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return one image, (3, H, W)."""
        return to_rgb(self.images[index], self.window)

    def target(self, index: int) -> Item:
        """Return all but the image."""
        index = range(len(self))[index]  # negative numbers, and IndexError past the end
        mask = np.asarray(self.masks[index])
        _check_pair(index, None, mask)
        if self.drawn:
            labels = _object_labels(mask)
            prompts = _no_prompts(len(labels))
        else:
            labels, prompts = self.prompts(index)
        masks = np.zeros((len(labels), *mask.shape[-2:]), dtype=bool)  # (N, H, W)
        for row, label in enumerate(labels):
            masks[row] = _object_mask(mask, label)
        keys = index * 4096 + torch.arange(len(labels))
        return {**prompts, "masks": torch.from_numpy(masks), "keys": keys}

    def prompts(self, index: int) -> tuple[NDArray[Any], Item]:
        """Return the labels (N,) of an image's objects, and their clicks and boxes."""
        first, last = self.object_starts[index], self.object_starts[index + 1]
        start, end = self.point_starts[index], self.point_starts[index + 1]
        return self.object_labels[first:last], {
            "points": torch.from_numpy(self.points[start:end]),
            "labels": torch.from_numpy(self.point_labels[start:end]),
            "counts": torch.from_numpy(self.point_counts[first:last]),
            "boxes": torch.from_numpy(self.boxes[first:last]),
        }


class Turned(Dataset[Item]):
    """A `SamDataset` whose items are mirrored and turned by quarters, anew in each epoch.

    What happens to an image, and where it is clicked on later, follows from seed, epoch and its
    number alone: it is the same for any number of ranks and workers, and after an interruption.
    Set `epoch` when an epoch begins.
    """

    def __init__(self, dataset: Dataset[Item], seed: int, *, augment: bool) -> None:
        """Wrap a dataset.

        Args:
            dataset: what to turn.
            seed: of the choices.
            augment: whether to turn anything.
        """
        self.dataset, self.seed, self.augment, self.epoch = dataset, seed, augment, 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Item:
        """Return one item of the dataset, perhaps in another of 8 positions."""
        item = dict(self.dataset[index])
        item["keys"] = item["keys"] + (self.seed * 10_000 + self.epoch) * 2**36
        if not self.augment:
            return item
        position = int(np.random.default_rng([self.seed, self.epoch, index]).integers(8))
        return turn(item, mirror=position >= 4, quarters=position % 4)


def turn(item: Item, *, mirror: bool, quarters: int) -> Item:
    """Mirror an item of a `SamDataset` left to right, then turn it counterclockwise.

    Args:
        item: image, masks and prompts.
        mirror: whether to.
        quarters: number of quarter turns.

    Returns:
        The same in its new position.
    """
    image, masks = item["image"], item["masks"]
    points = torch.cat([item["points"], item["boxes"].view(-1, 2)])  # boxes as two corners
    if mirror:
        right = image.shape[2] - 1
        image, masks = image.flip(2), masks.flip(2)
        points = torch.stack([right - points[:, 0], points[:, 1]], 1)
    for _ in range(quarters):
        right = image.shape[2] - 1
        image, masks = image.rot90(1, (1, 2)), masks.rot90(1, (1, 2))
        points = torch.stack([points[:, 1], right - points[:, 0]], 1)
    points, corners = points[: len(item["points"])], points[len(item["points"]) :]
    corners = corners.view(-1, 2, 2)
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    return {**item, "image": image, "masks": masks, "points": points, "boxes": boxes}


def _sequence(pictures: Images, *, labels: bool) -> Sequence[Any] | NDArray[Any]:
    """Return arrays as they are, and paths as pictures that are read when indexed."""
    paths: Any = pictures
    if isinstance(paths, (str, Path)) or (len(paths) and isinstance(paths[0], (str, Path))):
        return open_files(paths, labels=labels)
    given: Sequence[Any] = paths
    return given


def without_objects(image: NDArray[np.uint8]) -> Item:
    """Return an image (3, H, W) as an item in which nothing is asked for."""
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image)),
        "masks": torch.zeros(0, *image.shape[1:], dtype=torch.bool),
        "keys": torch.zeros(0, dtype=torch.long),
        **_no_prompts(0),
    }


def _no_prompts(objects: int) -> Item:
    return {
        "points": torch.zeros(0, 2),
        "labels": torch.zeros(0, dtype=torch.long),
        "counts": torch.zeros(objects, dtype=torch.long),
        "boxes": torch.full((objects, 4), torch.nan),
    }


def _check_pair(index: int, shape: tuple[int, ...] | None, mask: NDArray[Any]) -> None:
    """Refuse an image (of `shape`, if it is known) and a mask that do not fit or are not a mask."""
    if shape is not None:
        if len(shape) not in {2, 3} or (len(shape) == 3 and shape[-1] not in {1, 3}):
            hint = "; channels come last" if len(shape) == 3 and shape[0] in {1, 3} else ""
            raise ValueError(f"image {index} has shape {shape}, not (H, W) or (H, W, 3){hint}")
        if shape[:2] != mask.shape[-2:] or mask.ndim not in {2, 3}:
            hint = " (transposed?)" if shape[:2] == mask.shape[::-1] else ""
            raise ValueError(f"image {index} has shape {shape}, but its mask {mask.shape}{hint}")
    if mask.dtype.kind == "f" and not np.array_equal(mask, np.rint(mask)):
        raise ValueError(f"mask {index} holds fractions; a mask is a map of whole labels, or bool")
    if mask.dtype == np.uint8 and mask.ndim == 2:
        areas = np.bincount(mask.ravel(), minlength=256)[1:]
        between = int((areas[:-1] > 0).sum())
        if areas[-1] * 2 > areas.sum() and between > 8:
            raise ValueError(
                f"mask {index} is a gray picture of a mask: 0, 255, and {between} values between, "
                "each of which would be an object; pass mask > 127\n" + _sketch(mask > 127)
            )


def _rows(
    given: ArrayLike | None, name: str, images: int, widths: tuple[int, ...], columns: str
) -> NDArray[Any]:
    """Return rows as floats, clicks with a label; refuse those that name no image."""
    rows = np.asarray([] if given is None else given, dtype=np.float64)
    rows = rows.reshape(-1, widths[-1]) if rows.size == 0 else rows
    if rows.ndim != 2 or rows.shape[1] not in widths:
        wanted = " or ".join(f"(P, {width})" for width in widths)
        raise ValueError(f"{name} have shape {rows.shape}, not {wanted}: {columns}")
    image = rows[:, 0]
    for row in np.flatnonzero(~((image >= 0) & (image < images) & (image == np.rint(image)))):
        raise ValueError(
            f"{name} row {row}: image number {image[row]:g} is not one of 0..{images - 1}; "
            f"the columns are {columns}"
        )
    if rows.shape[1] == 3:
        rows = np.column_stack([rows, np.full(len(rows), FOREGROUND)])
    elif rows.shape[1] == 4:
        for row in np.flatnonzero(~np.isin(rows[:, 3], (FOREGROUND, BACKGROUND))):
            raise ValueError(f"{name} row {row}: label {rows[row, 3]:g} is neither 1 nor 0")
    return rows


def _by_image(rows: NDArray[Any]) -> list[tuple[int, NDArray[Any]]]:
    """Return the image numbers that rows name, each with the numbers of its rows in order."""
    order = np.argsort(rows[:, 0], kind="stable")
    images, first = np.unique(rows[order, 0], return_index=True)
    return list(zip(images.astype(int).tolist(), np.split(order, first[1:]), strict=False))


def _pixel(coordinate: float) -> int:
    return int(np.floor(coordinate + 0.5))


def _object_at(mask: NDArray[Any], y: float, x: float) -> int:
    """Return the label of the object at a click, 0 on background; in a stack the smallest one."""
    if mask.ndim == 2:
        return int(mask[_pixel(y), _pixel(x)])
    under = np.flatnonzero(mask[:, _pixel(y), _pixel(x)])
    sizes = [np.count_nonzero(mask[n]) for n in under]
    return int(under[np.argmin(sizes)]) + 1 if len(under) else 0


def _object_mask(mask: NDArray[Any], label: int) -> NDArray[np.bool_]:
    """Return the mask (H, W) of an object; in a stack label 1 is the first."""
    found: NDArray[np.bool_] = mask == label if mask.ndim == 2 else mask[label - 1] != 0
    return found


def _object_labels(mask: NDArray[Any]) -> NDArray[Any]:
    """Return the labels of all objects, (N,)."""
    if mask.ndim == 3:
        return np.array([n + 1 for n, each in enumerate(mask) if each.any()], dtype=np.int64)
    found = np.unique(mask).astype(np.int64)
    return np.asarray(found[found != 0])


def _box_of(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the box around a mask, (x0, y0, x1, y1), in pixel centers."""
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([x[0], y[0], x[-1], y[-1]], dtype=np.float64)


def _box_iou(box: NDArray[Any], boxes: NDArray[Any]) -> NDArray[Any]:
    """Return the intersection over union of a box (4,) with boxes (N, 4)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + 1
    both = sides.clip(0).prod(1)
    areas = [(b[..., 2:] - b[..., :2] + 1).prod(-1) for b in (box, boxes)]
    iou: NDArray[Any] = both / (areas[0] + areas[1] - both)
    return iou


def check_click(y: float, x: float, size: Sequence[int] | NDArray[Any], where: str = "") -> None:
    """Refuse a click outside an image of `size` (H, W) pixels.

    Raises:
        ValueError: The click lies outside; the message tells whether swapped axes would fit.
    """
    height, width = size
    if not (-0.5 <= y < height - 0.5 and -0.5 <= x < width - 0.5):
        fits = -0.5 <= x < height - 0.5 and -0.5 <= y < width - 0.5
        far = y > 2 * height or x > 2 * width
        raise ValueError(
            f"{where}y {y:g}, x {x:g} lies outside {height} x {width} pixels"
            + (" (are y and x swapped?)" if fits else "")
            + (" (in pixels of another size?)" if far and not fits else "")
        )


def _on_background(row: int, click: NDArray[Any], mask: NDArray[Any]) -> str:
    """Say of a click that is on no object what may be wrong, and show it."""
    image, y, x = click[:3]
    height, width = mask.shape[-2:]
    swapped = x < height - 0.5 and y < width - 0.5 and _object_at(mask, x, y)
    drawing = np.asarray(mask.any(0) if mask.ndim == 3 else mask != 0)
    return (
        f"coordinates row {row}: (image {image:g}, y {y:g}, x {x:g}) lies on background; "
        "the columns are (image, y, x)"
        + (", and x, y would be on an object: are they swapped?" if swapped else "")
        + f"\n{_sketch(drawing, y, x)}"
    )


def _sketch(mask: NDArray[Any], y: float | None = None, x: float | None = None) -> str:
    """Draw a mask (H, W) in at most 12 lines of text, with an X at a click."""
    height, width = mask.shape
    rows, columns = min(height, 12), min(width, 40)
    top, left = (np.arange(rows) * height) // rows, (np.arange(columns) * width) // columns
    blocks = np.maximum.reduceat(np.maximum.reduceat(mask != 0, top, 0), left, 1)
    lines = [["#" if inside else "." for inside in line] for line in blocks]
    if y is not None and x is not None:
        lines[min(int(y * rows / height), rows - 1)][min(int(x * columns / width), columns - 1)] = (
            "X"
        )
    return "\n".join("".join(line) for line in lines)


def gray_window(images: Sequence[Any] | NDArray[Any]) -> tuple[float, float] | None:
    """Decide once, for all images, which values become 0 and 255, and say so.

    Args:
        images: images of one numeric type. Of files, up to 64 are looked at.

    Returns:
        (low, high) in the images' own units; None for uint8 images, which stay as they are.

    Raises:
        ValueError: The types differ, values are not finite, or all are so small that they must
            have been divided by 255 too often.
    """
    step = -(-len(images) // 64) if isinstance(images, Files) else 1
    looked = [np.asarray(images[i]) for i in range(0, len(images), step)]
    types = {image.dtype for image in looked}
    if len(types) > 1:
        raise ValueError(f"images of different types: {', '.join(sorted(map(str, types)))}")
    if not types or not any(image.size for image in looked):
        return None
    kind = types.pop()
    low = min(float(np.min(image)) for image in looked)
    high = max(float(np.max(image)) for image in looked)
    if not np.isfinite([low, high]).all():
        raise ValueError("images hold values that are not finite")
    if low < high and low >= 0 and high <= (1 if kind.kind in "iu" else 1.01 / 255):
        brightest = next(i for i, image in enumerate(looked) if image.max() == high) * step
        raise ValueError(
            f"images: {kind}, {low:g}..{high:g}: nearly black. Divided by 255 twice, or cut to "
            f"whole numbers after that, or masks? Image {brightest}:\n"
            + _sketch(_plane(looked[brightest // step]))
        )
    if kind == np.uint8:
        return None
    if kind.kind in "bf" and low >= 0 and high <= 1:
        window, rule = (0.0, 1.0), "multiplied by 255"
    elif low >= 0 and high <= 255:
        window, rule = (0.0, 255.0), "taken as gray levels 0..255"
    else:  # microscopes have hot pixels: percentiles, not extremes; at most ~4000 pixels an image
        flat = [image.ravel() for image in looked]
        sample = np.concatenate([pixels[:: 1 + pixels.size // 4096] for pixels in flat])
        first, last = np.percentile(sample, (0.1, 99.9))
        window = (float(first), float(last))
        rule = f"{first:g}..{last:g} (0.1 % and 99.9 % of the pixels) stretched to 0..255"
    print0(f"images: {kind}, {low:g}..{high:g}; {rule}")
    return window


def _plane(image: NDArray[Any]) -> NDArray[Any]:
    return image if image.ndim == 2 else image.max(-1)


def to_rgb(image: ArrayLike, window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Bring one image to SAM's form.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3).
        window: the values that become 0 and 255; None: uint8 as it is.

    Returns:
        (3, H, W) uint8, a copy.

    Raises:
        ValueError: The image is not uint8, but the set's other images are.
    """
    pixels = np.asarray(image)
    if window is not None:
        low, high = window
        gain = 255 / max(high - low, 1e-12)
        pixels = np.rint(np.clip((pixels.astype(np.float32) - low) * gain, 0, 255))
    elif pixels.dtype != np.uint8:
        raise ValueError(f"an image is {pixels.dtype}, but those looked at first are uint8")
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    full = np.broadcast_to(channels_first, (3, *pixels.shape[:2]))
    return np.array(full, dtype=np.uint8, order="C")


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
    out["images"] = torch.zeros(len(batch), 3, height, width, dtype=torch.uint8)
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
    moved = {k: v.to(device, non_blocking=True) for k, v in batch.items() if k in _MOVED}
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
        rows = torch.where(torch.isin(index, numbers))[0].to(device)
        new_h, new_w = geometry.resized((h, w), size)
        true = _resize(masks[rows, None, :h, :w].to(torch.uint8) * 255, (new_h, new_w)) / 255
        out["target"][rows, :, :new_h, :new_w] = true
        out["inside"][rows, :, :new_h, :new_w] = True
    own = factors[index].to(device)  # (M, 2); padded clicks scale along, and nothing reads them
    out["points"], out["boxes"] = out["points"] * own[:, None], out["boxes"] * own.repeat(1, 2)
    return out


_MOVED = ("images", "masks", "image_index", "points", "labels", "boxes", "keys")


def _pixel_values(images: Tensor, sizes: Tensor, geometry: Geometry) -> Tensor:
    """Return (B, 3, S, S): resized, normalized, zero in the padding."""
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1)
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
            place = pixels[number, :, :new_h, :new_w]
            torch.mul(small, 1 / std, out=place)
            place -= mean / std
    return pixels


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 images (B, C, H, W) as PIL does, to gray levels in uint8, or float on CUDA."""
    if images.shape[2:] == size:
        return images
    if not len(images):
        return images.new_zeros(0, images.shape[1], *size)
    if images.is_cuda:  # CUDA has no uint8 kernel
        levels = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        return levels.round().clamp(0, 255)
    return F.interpolate(images, size, mode="bilinear", antialias=True)
