"""Patches of images that are too large to be read whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_magic.sam.arguments import check_minimum
from ddp_magic.sam.arrays.checks import check_shape
from ddp_magic.sam.arrays.masks import label_areas
from ddp_magic.sam.process_group import print0
from ddp_magic.sam.reading.pictures import Stored, as_stored, to_numpy

TRIES = 2000  # positions that are drawn for a patch, before there is none with enough objects
LARGE = 16  # patches in a chunk of an array, from which a note says that reading is slow


@dataclass
class _Places:
    """Where the patches are: drawn on first use, from the masks alone."""

    images: list[Any]
    masks: list[Any]
    corners: list[tuple[int, int, int, int]]  # (y0, x0, y1, x1) of the top left ones, of each image
    size: int
    min_objects: int
    min_area: int
    ignore_label: int | None
    seed: int
    drawn: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # image, top, left

    def image(self, index: int) -> NDArray[Any]:
        """Read the image of a patch."""
        return self._window(self.images, *self._place(index))

    def mask(self, index: int) -> NDArray[Any]:
        """Read the label map of a patch, without small pieces of objects at its border."""
        return self._labels(*self._place(index))[0]

    def _window(self, arrays: list[Any], which: int, top: int, left: int) -> NDArray[Any]:
        return np.array(arrays[which][top : top + self.size, left : left + self.size])

    def _labels(self, which: int, top: int, left: int) -> tuple[NDArray[Any], int]:
        """Return a label map without small pieces at its border, and how many objects are left."""
        patch = self._window(self.masks, which, top, left)
        labels, areas = label_areas(patch)
        border = np.concatenate([patch[0], patch[-1], patch[:, 0], patch[:, -1]])
        objects = labels != self.ignore_label
        cut = (areas < self.min_area) & objects & np.isin(labels, border)
        patch[np.isin(patch, labels[cut])] = 0
        return patch, int((objects & ~cut).sum())

    def _place(self, index: int) -> tuple[int, int, int]:
        """Return the place of a patch.

        Raises:
            ValueError: No position with enough objects was found.
        """
        if index in self.drawn:
            return self.drawn[index]
        rng = np.random.default_rng([self.seed, index])
        areas = np.array([(y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in self.corners], float)
        for _ in range(TRIES):
            which = int(rng.choice(len(areas), p=areas / areas.sum()))
            y0, x0, y1, x1 = self.corners[which]
            place = which, int(rng.integers(y0, y1)), int(rng.integers(x0, x1))
            if self._labels(*place)[1] >= self.min_objects:
                return self.drawn.setdefault(index, place)
        raise ValueError(
            f"none of {TRIES} patches of {self.size} x {self.size} pixels has {self.min_objects} "
            f"objects (pieces at the border of at least {self.min_area} pixels): use larger "
            "patches, a lower min_objects or min_area, or another region, and check that the masks "
            "are not empty"
        )


class Patches(Sequence[NDArray[Any]]):
    """The images or the masks of `random_patches`, read when they are indexed."""

    def __init__(self, n: int, read: Callable[[int], NDArray[Any]]) -> None:
        self.n, self.read = n, read

    def __len__(self) -> int:
        """Return the number of patches."""
        return self.n

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 -- Sequence allows slices, which are not used
        """Read a patch, (size, size) or (size, size, 3)."""
        return self.read(range(self.n)[index])


def random_patches(  # noqa: PLR0913 -- options with defaults
    images: Any,  # noqa: ANN401 -- arrays of many libraries
    masks: Any,  # noqa: ANN401 -- arrays of many libraries
    n: int,
    size: int = 512,
    *,
    min_objects: int = 1,
    min_area: int = 25,
    region: tuple[int, int, int, int] | None = None,
    ignore_label: int | None = None,
    seed: int = 0,
) -> tuple[Patches, Patches]:
    """Draw patches of large images, each with a minimum of objects, for `SamDataset`.

    A patch is read when it is used, and nothing else of its image:
    `SamDataset(*random_patches(image, labels, 1000))`. The same arguments give the same patches,
    in any order and process.

    Args:
        images: an array (H, W) or (H, W, 3), or a list of them: arrays of zarr, h5py or dask, or
            memory-mapped ones. For a tiled TIFF, `zarr.open(tifffile.imread(path, aszarr=True))`.
        masks: a label map (H, W) for each image, where 0 is background.
        n: number of patches.
        size: side of a patch, in pixels.
        min_objects: minimum number of objects in a patch. Other positions are drawn until there
            are as many.
        min_area: minimum area of a piece of an object at the border of a patch, in pixels.
            Smaller pieces become background.
        region: rows and columns (y0, x0, y1, x1) to draw from, in pixels, such as one part of an
            image for training and another for validation. None: the whole image.
        ignore_label: label of pixels that belong to no object, as in `SamDataset`. They stay.
        seed: seed for the positions.

    Returns:
        Two sequences of n patches: images, and label maps.

    Raises:
        TypeError: They are not arrays.
        ValueError: An image or mask has another shape, or is smaller than a patch. When a patch is
            used: no position with enough objects was found.
    """
    check_minimum(0, n=n, min_objects=min_objects, min_area=min_area, seed=seed)
    check_minimum(1, size=size)
    images, masks = (
        [as_stored(to_numpy(e)) for e in (given if isinstance(given, (list, tuple)) else [given])]
        for given in (images, masks)
    )
    if len(images) != len(masks):
        raise ValueError(f"{len(images)} images but {len(masks)} masks")
    corners = []
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if not (hasattr(image, "shape") and hasattr(mask, "shape")):
            raise TypeError(
                f"image {i} and its mask are {type(image).__name__} and {type(mask).__name__}, "
                "but patches need arrays: read the file first, for example as a zarr array"
            )
        check_shape(f"image {i}", image.shape)
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"image {i} has shape {image.shape}, but its mask has {mask.shape}: the mask must "
                "be a label map (H, W)"
            )
        height, width = mask.shape
        y0, x0, y1, x1 = region or (0, 0, height, width)
        fits = 0 <= y0 <= y1 - size <= height - size and 0 <= x0 <= x1 - size <= width - size
        if not fits:
            raise ValueError(
                f"patches of {size} x {size} pixels do not fit into rows {y0} to {y1} and columns "
                f"{x0} to {x1} of image {i}, which has {height} x {width} pixels: use a smaller "
                "size, or another region (y0, x0, y1, x1)"
            )
        corners.append((y0, x0, y1 - size + 1, x1 - size + 1))
        for name, array in ((f"image {i}", image), (f"mask {i}", mask)):
            _note_chunks(name, array, size)
    places = _Places(images, masks, corners, size, min_objects, min_area, ignore_label, seed)
    return Patches(n, places.image), Patches(n, places.mask)


def _note_chunks(name: str, array: Any, size: int) -> None:  # noqa: ANN401 -- of many libraries
    """Print a line if an array is stored in chunks that are much larger than a patch."""
    chunks = getattr(array.array, "chunks", None) if isinstance(array, Stored) else None
    height, width = [int(np.max(sides)) for sides in chunks or (0, 0)][:2]  # dask has many a side
    if height * width > LARGE * size**2:
        print0(
            f"{name} is stored in chunks of {height} x {width} pixels, which are read whole for "
            f"each patch: this takes long, store it in chunks of about {size} x {size}"
        )
