"""Checks of masks: whether they are label maps or stacks, or something that looks like them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ddp_magic.sam.arrays.checks import sketch
from ddp_magic.sam.arrays.masks import Encoded, Mask, components_of, label_areas, label_map

LONELY = 0.05  # maximum share of the pixels at edges that differ from all their neighbors
RIMMED = 0.16  # maximum share of rows of objects with a thin rim of a lower label; cells: 0.06
FEW_EDGES, FEW_ROWS = 150, 24  # pixels and rows, below which a share of them says little
FEW_LABELS = 8  # up to which nested labels are looked at one by one
RIM = 4  # maximum width of such a rim, px
RIM_SHARE = 0.75  # of the pixels of a label, from which it has no other objects
SPECK = 3  # px, of an object that is noise, or what a filter or a codec has left; said
MANY_PARTS = 2  # parts per label, from which a note says that they are one object
SPLIT = 1.1  # parts per label, above which objects of 8 bits are not just in several parts
ALL_BYTES = 250  # labels of 8 bits, from which several parts of a label are several objects


def check_mask(name: str, mask: Mask, *, components: bool = False) -> None:
    """Check that a mask is a label map (H, W), or a stack (N, H, W) with one mask per object.

    Args:
        name: name of the mask, for messages.
        mask: the mask.
        components: whether each connected part of a label is an object.

    Raises:
        ValueError: It is not.
    """
    if mask.ndim not in {2, 3}:
        raise ValueError(f"{name} has shape {mask.shape}, but must have (H, W) or (N, H, W)")
    if mask.dtype == bool:
        return
    if mask.dtype.kind not in "uif" or float(mask.max(initial=0)) >= 2**63:
        raise ValueError(
            f"{name} has dtype {mask.dtype}: use bool, or integer labels 1, 2, 3, ... below 2**63"
        )
    if mask.dtype == np.float32 and mask.max(initial=0) >= 2**24:
        raise ValueError(
            f"{name} has labels of 2**24 or more in float32, in which some labels became equal: "
            "save them as integers"
        )
    if mask.dtype.kind == "f" and not np.array_equal(mask, np.rint(mask)):
        raise ValueError(
            f"{name} contains fractions or NaN: pass mask > 0.5 for probabilities, np.rint(mask) "
            "for labels, and np.nan_to_num(mask) for NaN"
        )
    if mask.size and mask.min() < 0:
        least = int(mask.min())
        remedy = (
            "if they are logits, pass stack > 0"
            if mask.ndim == 3
            else (
                f"if it marks pixels to leave out, SamDataset(..., ignore_label={least}) does so; "
                "otherwise use 0 as background"
            )
        )
        raise ValueError(f"{name} contains the negative label {least}: {remedy}")
    if mask.ndim == 3:
        _check_stack(name, mask)
        return
    labels, areas = label_areas(mask)
    if len(labels) > 1:
        _check_gray(name, mask, labels, areas)
        _check_ignore(name, mask, labels)
    if not components and len(labels) >= ALL_BYTES and labels[-1] <= 255:
        _check_bytes(name, mask, len(labels))


def _check_stack(name: str, mask: NDArray[Any]) -> None:
    for number, each in enumerate(mask):
        if ((each != 0) & (each != each.max())).any():
            raise ValueError(
                f"{name} is a stack, but its mask {number} has {len(np.unique(each))} values: a "
                "stack (N, H, W) contains one mask per object; pass stack > 127 for gray levels, "
                "or one label map (H, W) per image"
            )


def _check_gray(name: str, mask: NDArray[Any], labels: NDArray[Any], areas: NDArray[Any]) -> None:
    """Refuse gray images: pictures, and masks after JPEG, smoothing, or resizing.

    In them, many pixels at edges have a value that none of their neighbors has. In label maps,
    also of tiny or touching objects, such pixels are rare. With few labels, smooth resizing puts
    a thin rim of the labels below around each object instead.
    """
    lonely, edge = lonely_pixels(mask)
    # With little loss, JPEG has values near black and white only.
    faint, white = (labels < 16).sum(), (labels >= 240).sum()
    near = labels[-1] < 256 and faint + white == len(labels) and white > 1 and lonely > 0
    rimmed = _rimmed(mask, labels)
    if _is_one_rimmed(mask, labels):
        return
    # Each sign alone, or half of both, as after resizing up and down again.
    if near or lonely / (LONELY * max(edge, FEW_EDGES)) + rimmed / RIMMED > 1:
        signs = (
            f"{rimmed:.0%} of its objects have a thin rim of a lower label on both sides"
            if rimmed > RIMMED
            else f"{lonely} of the {edge} pixels at edges differ from all their neighbors, and "
            f"{(areas <= 3).sum()} of its {len(labels)} labels have one to three pixels"
        )
        raise ValueError(
            f"{name} is a gray image, not a label map: {signs}. Was it saved as JPEG, resized "
            "smoothly, or is it the picture itself? Save masks as PNG or TIFF, resize them with "
            f"nearest neighbors; for one object, pass mask > {int(labels[-1]) // 2}. If its labels "
            "are right, pass a stack, np.stack([mask == n for n in np.unique(mask)[1:]])\n"
            + sketch(mask > labels[-1] / 2)
        )


def lonely_pixels(mask: NDArray[Any]) -> tuple[int, int]:
    """Return how many pixels at edges differ from all neighbors and touch a label; and all."""
    padded = np.pad(mask, 1)
    own, edge = padded[1:-1, 1:-1], np.zeros(mask.shape, bool)
    alone, beside = np.ones(mask.shape, bool), np.zeros(mask.shape, bool)
    for other in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        differs = own != other
        edge |= differs
        alone &= differs
        beside |= differs & (other != 0)
    inside = own != 0
    return int((inside & alone & beside).sum()), int((inside & edge).sum())


def _rimmed(mask: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the larger share of rows or columns with a rim, around any of nested labels.

    Resizing along one axis leaves a trace on that axis only.
    """
    tops = labels[1:] if len(labels) <= FEW_LABELS else labels[-1:]
    levels = [np.minimum(mask, top) for top in tops.tolist()]
    return max((rimmed_rows(each) for level in levels for each in (level, level.T)), default=0.0)


def rimmed_rows(mask: NDArray[Any]) -> float:
    """Return the share of rows through objects on which lower labels are a rim on both sides.

    Objects of the lowest label cannot have one, and do not count.
    """
    flat = np.pad(mask, ((0, 0), (2, 2))).ravel()  # so that runs of two rows are apart
    starts = np.flatnonzero(np.diff(flat, prepend=1 - flat[:1]))
    values, widths = flat[starts], np.diff(starts, append=len(flat))
    left, own, right = values[:-2], values[1:-1], values[2:]
    tops = (own > left) & (own > right) & (own > values[values != 0].min(initial=own.max()))
    width = np.maximum(widths[:-2], widths[2:])
    rims = tops & (left == right) & (left != 0) & (width <= 2 * RIM)
    outer = np.pad(values, 1)
    # Between poles, or between walls of cells, higher labels go on beyond both.
    rims &= np.minimum(outer[:-4], outer[4:]) < left
    # Resizing goes from 0 to a label through 1, and a rim of several pixels would leave room for
    # it. In a heart, the wall 2 around the ventricle 3 borders 0.
    alone = (left > 1) & ((outer[:-4] == 0) | (outer[4:] == 0))
    rims &= ~(alone & (np.minimum(widths[:-2], widths[2:]) > 1))
    # Of true nested labels, such as a cup in its disc, many rims are a little wider.
    found = int(np.where(width <= RIM, 1, -1)[rims].sum())
    return float(max(found, 0) / max(tops.sum(), FEW_ROWS))


def _is_one_rimmed(mask: NDArray[Any], labels: NDArray[Any]) -> bool:
    """Return whether the labels are 1 and 2, and 1 is hardly more than a thin rim around 2.

    The wall of a vessel is such a rim. Resizing makes it of a mask of 2 alone, where 1 happens to
    have no object of its own: `note_on` says so.
    """
    if labels.tolist() != [1, 2] or _rimmed(mask, labels) <= RIMMED:
        return False
    around = ndimage.binary_dilation(mask == 2, np.ones((3, 3)), iterations=RIM)
    return bool(np.mean(around[mask == 1]) > RIM_SHARE)


def _check_ignore(name: str, mask: NDArray[Any], labels: NDArray[Any]) -> None:
    """Refuse 255, 65535 and 2**32 - 1 far above the other labels, which data sets leave out.

    The largest number of another dtype, too: it is what -1 becomes, or a writer's missing value.
    """
    top = int(labels[-1])
    marks = {255, 65535, 2**32 - 1}
    marks |= {int(np.iinfo(mask.dtype).max)} if mask.dtype.kind in "iu" else set()
    if top not in marks or labels[-2] > 0.9 * top:
        return
    around = ndimage.binary_dilation(mask == top)
    beside = set(label_areas(np.where(around, mask, 0))[0].tolist()) - {top}
    if not beside and labels[-2] >= 64:  # three gray levels, or so, for separate objects
        return
    raise ValueError(
        f"{name} has the labels 1 to {labels[-2]} and {top}, which borders {len(beside)} of them: "
        f"if {top} marks pixels to leave out, as in PASCAL VOC, SamDataset(..., "
        f"ignore_label={top}) does so; if it is an object, give it the label {labels[-2] + 1}"
    )


def _check_bytes(name: str, mask: NDArray[Any], labels: int) -> None:
    """Refuse label maps of more objects than 8 bits can number, which were cast or scaled."""
    if (parts := _parts(mask)) > SPLIT * labels:
        raise ValueError(
            f"{name} has {labels} labels up to 255, but {parts} separate parts: were more "
            "than 255 objects saved in 8 bits? Save the original labels in 16 bits, or let each "
            "part be an object, SamDataset(..., components=True)"
        )


def _parts(mask: NDArray[Any]) -> int:
    """Return the number of connected parts of labels, without those that are tiny."""
    return int(np.sum(label_areas(components_of(mask))[1] > SPECK))


def note_on(name: str, mask: Mask) -> tuple[str, str]:
    """Return a sentence on a mask that may mean something else than its user thinks, and a remedy.

    Both are empty if there is nothing to say.
    """
    if isinstance(mask, Encoded) or not mask.any():
        return "", ""
    every = label_map(mask)
    labels, areas = label_areas(every)
    largest = labels[areas.argmax()]
    inside = every == largest
    border = np.concatenate([every[0], every[-1], every[:, 0], every[:, -1]])
    if inside.mean() > 0.5 and (border == largest).mean() > 0.9:
        covered = f"the object {largest} covers {inside.mean():.0%} of the image and its border"
        return f"{name}: {covered}", "If it is the background, make it 0"
    if _is_one_rimmed(every, labels):
        rim = "the object 1 is a thin rim around the object 2"
        return f"{name}: {rim}", "If resizing has made it, resize with nearest neighbors instead"
    if specks := np.sum((areas <= SPECK) & ~np.isin(labels, border)):
        few = f"{specks} of {len(labels)} objects have at most {SPECK} pixels"
        return f"{name}: {few}", "If they are noise, make them 0"
    if (parts := _parts(every)) >= MANY_PARTS * len(labels) and (mask.ndim == 2 or len(mask) == 1):
        what = "one object" if len(labels) == 1 else f"{len(labels)} objects"
        remedy = "SamDataset(..., components=True)" + ", with masks (H, W)" * (mask.ndim == 3)
        return f"{name}: {parts} separate parts are {what}", f"If each is an object: {remedy}"
    return "", ""
