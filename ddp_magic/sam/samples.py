"""Data to try things on: one real microscope image, and cells drawn with NumPy.

Needs NumPy, and Pillow for the real image; not torch. Both functions return
(images, masks, coordinates), ready for `SamDataset(*nuclei("train"))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

Samples = tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int64]]
UnequalSamples = tuple[list[NDArray[np.uint8]], list[NDArray[np.int32]], NDArray[np.int64]]

BORDER = 352  # px; columns left of it are for training, the others are held out
SEEN = 24  # px; an object of which a crop shows less is not asked for


@overload
def nuclei(
    split: Literal["train", "val"] = "train",
    crops: int | None = None,
    size: int = 64,
    seed: int = 0,
) -> Samples: ...


@overload
def nuclei(
    split: Literal["train", "val"] = "train",
    crops: int | None = None,
    *,
    size: Sequence[int],
    seed: int = 0,
) -> UnequalSamples: ...


def nuclei(
    split: Literal["train", "val"] = "train",
    crops: int | None = None,
    size: int | Sequence[int] = 64,
    seed: int = 0,
) -> Samples | UnequalSamples:
    """Crops of a fluorescence image of cell nuclei, masks by an expert, one random click a nucleus.

    All crops come from one image of 512 x 512 pixels with 125 nuclei: those for training from its
    columns 0 to 351, the held-out ones from 352 to 511, where the nuclei that reach across are
    taken out of the masks. So scores on "val" tell of a held-out region, not of other experiments.

    Args:
        split: "train" or "val".
        crops: number of (overlapping) crops; default 768 for training, 127 held out.
        size: side of a crop, in pixels, at most 160; or several, of which each crop has one. A
            model that brings them all to one square learns nuclei of more sizes than there are.
        seed: of the crops' places, sizes and clicks.

    Returns:
        Images (n, size, size) uint8; label maps (n, size, size) int32, 0 = background; clicks
        (P, 3), rows (image, y, x), of three nuclei an image. With several sizes, images and label
        maps are lists.

    Raises:
        ImportError: The image is not here.
        ValueError: An unknown split.

    Source:
        J. C. Caicedo et al., "Nucleus segmentation across imaging experiments: the 2018 Data
        Science Bowl", Nature Methods 2019; the image is in the files of the stardist package.
    """
    image, labels = _stardist_image()
    if split == "train":
        image, labels, crops = image[:, :BORDER], labels[:, :BORDER], crops or 768
    elif split == "val":
        seen = np.unique(labels[:, :BORDER])
        labels = np.where(np.isin(labels, seen), 0, labels)[:, BORDER:]
        image, crops = image[:, BORDER:], crops or 127
    else:
        raise ValueError(f'split is "train" or "val", not {split!r}')
    rng = np.random.default_rng([seed, split == "val"])
    if isinstance(size, int):
        images, masks, clicks = _random_crops(image, labels, crops, [size], rng)
        return np.stack(images), np.stack(masks), clicks
    return _random_crops(image, labels, crops, size, rng)


def _stardist_image() -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Read stardist's image and mask, both (512, 512), without importing stardist."""
    spec = find_spec("stardist")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "nuclei() reads an image from the files of stardist: pip install --no-deps stardist; "
            "cells() draws a stand-in"
        )
    from PIL import Image  # cells() works without it

    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "images"
    with Image.open(folder / "img2d.tif") as file:
        image = np.asarray(file).astype(np.float64)
    with Image.open(folder / "mask2d.tif") as file:
        labels = np.asarray(file).astype(np.int32)
    low, high = np.percentile(image, (1, 99))
    return np.rint(np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8), labels


def _random_crops(
    image: NDArray[np.uint8],
    labels: NDArray[np.int32],
    crops: int,
    sizes: Sequence[int],
    rng: np.random.Generator,
) -> UnequalSamples:
    """Cut `crops` squares that show at least three objects, and click on three in each."""
    height, width = labels.shape
    images: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.int32]] = []
    clicks: list[tuple[int, int, int]] = []
    while len(images) < crops:
        # A single size draws no number: the committed scores are of crops cut without one.
        size = sizes[0] if len(sizes) == 1 else int(rng.choice(sizes))
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        mask = labels[top : top + size, left : left + size]
        found, area = np.unique(mask, return_counts=True)
        found = found[(found > 0) & (area >= SEEN)]
        if len(found) < 3:
            continue
        for label in rng.permutation(found)[:3]:
            y, x = rng.choice(np.argwhere(mask == label))
            clicks.append((len(images), int(y), int(x)))
        images.append(image[top : top + size, left : left + size])
        masks.append(mask)
    return images, masks, np.array(clicks, dtype=np.int64)


def cells(n: int = 96, size: int = 64, seed: int = 0) -> Samples:
    """Draw round cells on a noisy ground, with exact masks, and click on up to three in each image.

    Args:
        n: number of images.
        size: side of an image, in pixels, at least 32.
        seed: of everything that is drawn; different seeds are different data.

    Returns:
        As `nuclei`; an image has up to three clicks.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]  # (size, size) each
    images = np.zeros((n, size, size), dtype=np.uint8)
    masks = np.zeros((n, size, size), dtype=np.int32)
    clicks: list[tuple[int, int, int]] = []
    for i in range(n):
        light = np.full((size, size), 40.0)
        for label in range(1, 1 + rng.integers(4, 8)):
            cy, cx = rng.uniform(4, size - 4, 2)
            a, b = rng.uniform(size / 12, size / 6, 2)  # half axes, px
            turn = rng.uniform(0, np.pi)
            u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
            v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
            radius = (u / a) ** 2 + (v / b) ** 2
            wide = (u / (a + 2)) ** 2 + (v / (b + 2)) ** 2  # two pixels of ground between cells
            if not masks[i][wide < 1].any():
                masks[i][radius < 1] = label
                light = np.where(radius < 1, rng.uniform(110, 200) * (1.2 - 0.4 * radius), light)
        images[i] = np.clip(light + rng.normal(0, 10, light.shape), 0, 255).astype(np.uint8)
        found, area = np.unique(masks[i], return_counts=True)
        for label in rng.permutation(found[(found > 0) & (area >= SEEN)])[:3]:
            cy, cx = rng.choice(np.argwhere(masks[i] == label))
            clicks.append((i, int(cy), int(cx)))
    return images, masks, np.array(clicks, dtype=np.int64)
