"""Sample data: a real microscope image, and synthetic cells.

Needs NumPy, and Pillow for the real image, but not torch. Both functions return (images, masks,
coordinates), for example for `SamDataset(*nuclei("train"))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_magic.sam.arrays.masks import label_areas

BORDER = 352  # px; the columns left of it are for training, the others are held out
SEEN = 24  # minimum visible area in a crop of an object that is prompted, px


def nuclei(
    split: str = "train", crops: int | None = None, size: int | Sequence[int] = 64, seed: int = 0
) -> tuple[Any, Any, NDArray[np.int64]]:
    """Return crops of a fluorescence image of cell nuclei, with masks by an expert, and clicks.

    All crops come from one image of 512 x 512 pixels with 125 nuclei: training crops from columns 0
    to 351, held-out crops from columns 352 to 511. Nuclei that cross the border are removed from
    the held-out masks. Scores on "val" are for a held-out region of the same image, not for
    other experiments.

    Args:
        split: "train" or "val".
        crops: number of crops, which overlap. Default: 768 for "train", 127 for "val".
        size: side of a crop, 32 to 160 pixels; or a sequence of sides, from which each crop has a
            random one. Since a model resizes all crops to one square, it then learns from
            nuclei of more sizes.
        seed: seed for the positions, sizes and clicks.

    Returns:
        Images (n, size, size) uint8; label maps (n, size, size) int32, where 0 is background;
        clicks (P, 3), rows (image index, y, x), one on each of three nuclei per image. With several
        sizes, images and label maps are lists.

    Raises:
        ImportError: The stardist package, which contains the image, is not installed.
        ValueError: An argument is invalid.

    Source:
        J. C. Caicedo et al., "Nucleus segmentation across imaging experiments: the 2018 Data
        Science Bowl", Nature Methods 2019; the image is in the files of the stardist package.
    """
    if split not in ("train", "val"):
        raise ValueError(f'invalid split {split!r}: use "train" or "val"')
    image, labels = _stardist_image()
    held_out, kept, _ = nuclei_picture()
    if split == "val":
        image, labels = held_out, kept
    crops = {"train": 768, "val": 127}[split] if crops is None else crops
    sizes = [*size] if isinstance(size, Sequence) else [size]
    if not sizes or not all(32 <= each <= 160 for each in sizes):
        raise ValueError(f"invalid size {size!r}: use an integer from 32 to 160, or several")
    rng = np.random.default_rng([seed, split == "val"])
    width = BORDER if split == "train" else image.shape[1]
    images: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.int32]] = []
    clicks: list[tuple[int, int, int]] = []
    while len(images) < crops:
        # A single size uses no random number, so that the committed scores stay reproducible.
        side = sizes[0] if len(sizes) == 1 else int(rng.choice(sizes))
        top, left = rng.integers(len(image) - side + 1), rng.integers(width - side + 1)
        mask = labels[top : top + side, left : left + side]
        if (label_areas(mask)[1] >= SEEN).sum() >= 3:
            clicks += _clicks(mask, len(images), rng)
            images.append(image[top : top + side, left : left + side])
            masks.append(mask)
    rows = np.array(clicks, dtype=np.int64)
    if isinstance(size, Sequence):
        return images, masks, rows
    return np.stack(images), np.stack(masks), rows


def _clicks(mask: NDArray[Any], image: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Return a click (image, y, x) on each of up to three random objects."""
    labels, areas = label_areas(mask)
    clicks = []
    for label in rng.permutation(labels[areas >= SEEN])[:3]:
        y, x = rng.choice(np.argwhere(mask == label))
        clicks.append((image, int(y), int(x)))
    return clicks


def nuclei_picture() -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.bool_]]:
    """Return the held-out region of `nuclei` as a whole picture, to segment and to score.

    Returns:
        The image (512, 160) uint8; its label map; and the pixels of the five nuclei that cross the
        border of the region, which are not in the label map: `ignore` of `instance_scores`.

    Raises:
        ImportError: The stardist package, which contains the image, is not installed.
    """
    image, labels = _stardist_image()
    seen = np.unique(labels[:, :BORDER])
    ignore = np.isin(labels, seen[seen > 0])[:, BORDER:]
    return image[:, BORDER:], np.where(ignore, 0, labels[:, BORDER:]), ignore


def _stardist_image() -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Read the image and the mask of stardist, both (512, 512), without importing stardist."""
    spec = find_spec("stardist")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "nuclei() needs the image in the stardist package: pip install --no-deps stardist, or "
            "use cells(), which needs no package"
        )
    from PIL import Image  # not needed by cells()

    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "images"
    with Image.open(folder / "img2d.tif") as file:
        image = np.asarray(file).astype(np.float64)
    with Image.open(folder / "mask2d.tif") as file:
        labels = np.asarray(file).astype(np.int32)
    low, high = np.percentile(image, (1, 99))
    return np.rint(np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8), labels


def cells(
    n: int = 96, size: int = 64, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int64]]:
    """Return synthetic images of cells on a noisy background, with exact masks, and clicks.

    Args:
        n: number of images.
        size: side of an image, in pixels, at least 32.
        seed: seed for all random choices.

    Returns:
        The same as `nuclei`, with up to three clicks per image.
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
            wide = (u / (a + 2)) ** 2 + (v / (b + 2)) ** 2  # two pixels of background between cells
            if not masks[i][wide < 1].any():
                masks[i][radius < 1] = label
                light = np.where(radius < 1, rng.uniform(110, 200) * (1.2 - 0.4 * radius), light)
        images[i] = np.clip(light + rng.normal(0, 10, light.shape), 0, 255).astype(np.uint8)
        clicks += _clicks(masks[i], i, rng)
    return images, masks, np.array(clicks, dtype=np.int64)
