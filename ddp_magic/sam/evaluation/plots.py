"""Figures of results and learning curves. Call these functions on one rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ddp_magic.sam.arrays.items import PAD
from ddp_magic.sam.arrays.masks import object_labels, object_masks
from ddp_magic.sam.evaluation.metrics import dice_score

Arrays = Any  # a tensor, an array, or a list of them

STROKE = [withStroke(linewidth=2, foreground="black")]  # readable on bright and on dark pixels
NUMBER: dict[str, Any] = {"fontsize": 9, "fontweight": "bold", "color": "white"}
NUMBER |= {"path_effects": STROKE}
WIDTH = 6.1  # inches, for two or three columns


def show_results(
    images: Arrays,
    points: Sequence[Any] | None = None,
    masks: Sequence[Any] | None = None,
    predictions: Arrays = None,
    *,
    title: str = "",
    rows: int = 4,
) -> None:
    """Plot images with clicks, true masks and predicted masks, one row per image.

    Objects are numbered. Columns without data are left out.

    Args:
        images: a batch from `collate`, which contains points and masks too; or images (H, W, 3),
            (H, W) or (3, H, W), uint8 or floats from 0 to 1.
        points: for each image, clicks (K, 2), (y, x) in pixels as in `predict`, or a list of such
            arrays, one per object; or (K, 3) with the label, where clicks with label 0 (off the
            object) are red. Those of a batch are (x, y), as in SAM.
        masks: for each image, masks (N, H, W), a mask (H, W), or an integer label map (H, W).
        predictions: masks or logits, for each image as in `masks`; for a batch, (M, H, W).
        title: title of the figure.
        rows: maximum number of images, at most 5.
    """
    boxes: Sequence[Any] | None = None
    if is_batch := isinstance(images, Mapping):
        images, points, masks, predictions, boxes = _split(images, predictions)
    n = min(len(images), rows, 5)
    if n == 0:
        return
    pictures = [_channels_last(_array(images[i])) for i in range(n)]
    columns = ["image" if points is None else "image and clicks"]
    columns += ["true"] * (masks is not None) + ["predicted"] * (predictions is not None)
    width = WIDTH / max(2, len(columns))  # inches, of one picture
    tall = min(1.5, max(picture.shape[0] / picture.shape[1] for picture in pictures))
    size = (width * len(columns), n * 0.88 * width * tall + 0.5)
    figure, axes = plt.subplots(n, len(columns), figsize=size, squeeze=False)
    for i, (image, line) in enumerate(zip(pictures, axes, strict=True)):
        clicks = [] if points is None else _clicks(points[i], is_batch=is_batch)
        _show_image(line[0], image, clicks, [] if boxes is None else boxes[i])
        true, pred = (
            None if x is None or x[i] is None else _stack(x[i]) for x in (masks, predictions)
        )
        if masks is not None:
            _show_masks(line[1], image, true)
        if predictions is not None:
            _show_masks(line[-1], image, pred)
        if true is not None and pred is not None and len(true) and true.shape == pred.shape:
            line[-1].set_xlabel(f"Dice {dice_score(pred, true).mean():.2f}", fontsize=8)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=9)
    _finish(figure, title, 1 - 0.12 / n if title else 1)


def _finish(figure: Any, title: str, top: float = 1) -> None:  # noqa: ANN401 -- of matplotlib
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(pad=0.4, rect=(0, 0, 1, top))
    plt.show()
    plt.close(figure)  # open figures would accumulate over the epochs


def show_history(history: Sequence[Mapping[str, float]], *, title: str = "") -> None:
    """Plot the training loss and the held-out scores over the epochs.

    Args:
        history: the return value of `train`.
        title: title of the figure.
    """
    if isinstance(history, Mapping) or not all(isinstance(row, Mapping) for row in history):
        raise TypeError("history must be what train returns, a list of a dict per epoch")
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.2))
    epochs = [float(row["epoch"]) for row in history]  # of log.csv, text
    left.plot(epochs, [float(row["train_loss"]) for row in history], color="tab:red")
    left.set(xlabel="epoch", ylabel="training loss")
    names = {"dice": "Dice, 1 click", "dice_5": "5 clicks", "wrong_prompt_dice": "wrong prompt"}
    for key, name in names.items():
        style = "--" if key == "wrong_prompt_dice" else "-"
        right.plot(epochs, [float(row[key]) for row in history], style, label=name)
    right.set(xlabel="epoch", ylabel="held out", ylim=(0, 1))
    right.legend(fontsize=7)
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, title)


def _split(batch: Mapping[str, Any], predictions: Arrays) -> tuple[list[Any] | None, ...]:
    """Split a batch into lists with one entry per image."""
    rows = []
    for i, (h, w) in enumerate(batch["sizes"].tolist()):
        own = (batch["image_index"] == i).nonzero()[:, 0].cpu()  # (N,)
        signed = torch.cat([batch["points"][own], batch["labels"][own, :, None].float()], 2)
        clicks = [each[each[:, 2] != PAD] for each in signed]
        found = None if predictions is None else predictions[own, :h, :w]
        masks, boxes = batch["masks"][own, :h, :w], batch["boxes"][own]
        rows.append((batch["images"][i, :, :h, :w], clicks, masks, found, boxes))
    images, points, true, pred, around = map(list, zip(*rows, strict=True))
    return images, points, true, None if predictions is None else pred, around


def _array(values: Arrays) -> NDArray[Any]:
    """Return a NumPy array for an array, or for a tensor on any device."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _channels_last(image: NDArray[Any]) -> NDArray[Any]:
    is_first = image.ndim == 3 and image.shape[0] in {1, 3} and image.shape[-1] not in {1, 3}
    return (image.transpose(1, 2, 0) if is_first else image).squeeze()


def _clicks(points: Arrays, *, is_batch: bool) -> list[NDArray[Any]]:
    """Return the clicks (x, y) of each object, (K, 2) each; a single array is of one object."""
    several = isinstance(points, (list, tuple)) and all(np.ndim(_array(p)) == 2 for p in points)
    arrays = [_array(each) for each in (points if several else [points])]
    arrays = [each.reshape(-1, 2) if each.ndim != 2 else each for each in arrays]
    return arrays if is_batch else [each[:, [1, 0, *range(2, each.shape[1])]] for each in arrays]


def _stack(masks: Arrays) -> NDArray[Any]:
    """Return masks (N, H, W), bool, for masks, logits (floats) or a label map (integers, 2-D)."""
    array = _array(masks)
    if array.ndim == 2 and array.dtype.kind in "iu":
        return object_masks(array, object_labels(array))
    array = array > 0 if array.dtype.kind == "f" else array != 0
    return array.reshape(-1, *array.shape[-2:])


def _show_image(
    axis: Axes, image: NDArray[Any], points: Sequence[NDArray[Any]], boxes: Arrays
) -> None:
    axis.imshow(image, cmap="gray")
    for number, clicks in enumerate(points):
        off = (clicks[:, 2] == 0) if clicks.shape[1] > 2 else np.zeros(len(clicks), bool)
        color = np.where(off, "red", "lime").tolist()
        axis.scatter(clicks[:, 0], clicks[:, 1], s=22, color=color, edgecolors="black", lw=0.6)
        for x, y in clicks[:, :2]:
            axis.annotate(str(number), (x, y), (4, 4), textcoords="offset points", **NUMBER)
    for x0, y0, x1, y1 in _array(boxes)[~np.isnan(_array(boxes)).any(1)] if len(boxes) else []:
        axis.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="lime"))
    axis.set(xticks=[], yticks=[])


def _show_masks(axis: Axes, image: NDArray[Any], masks: NDArray[Any] | None) -> None:
    """Plot the masks over the dimmed image, each in a color, with its number at its center."""
    axis.set(xticks=[], yticks=[], facecolor="black")
    axis.imshow(image, cmap="gray", alpha=0.45)
    colors = plt.get_cmap("tab10")
    for number, mask in enumerate([] if masks is None else masks):
        overlay = np.zeros((*mask.shape, 4))  # (H, W, RGBA)
        overlay[mask] = (*colors(number % 10)[:3], 0.7)
        axis.imshow(overlay)
        if mask.any():
            y, x = np.argwhere(mask).mean(0)
            axis.text(x, y, str(number), ha="center", va="center", **NUMBER)
