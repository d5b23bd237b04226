"""Reading parts of items from a `SamDataset`, a torch `Subset` of one, or any other data set."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ddp_magic.sam.arrays.items import Item, check_item, pick_objects
from ddp_magic.sam.data.dataset import Choice, SamDataset
from ddp_magic.sam.process_group import check_same, print0


def size_of(dataset: object, name: str = "dataset") -> int:
    """Return the number of images of a data set.

    Raises:
        TypeError: `dataset` is not a data set, but for example arrays or a loader.
    """
    if not isinstance(dataset, Dataset) or not hasattr(dataset, "__len__"):
        what = type(dataset).__name__
        raise TypeError(f"{name} must be a data set such as SamDataset(...), not a {what}")
    return len(dataset)


def _origin(dataset: Dataset[Item], index: int) -> tuple[SamDataset | None, int]:
    """Return the `SamDataset` that an item comes from unchanged (or None), and its index there.

    Another data set, such as of stored embeddings, is one if it has the same `__getitem__`.
    """
    found: Any = dataset
    while isinstance(found, Subset):
        found, index = found.dataset, found.indices[index]
    # A subclass with its own __getitem__ or item may return other items.
    as_it_is = getattr(type(found), "__getitem__", None) is SamDataset.__getitem__
    if isinstance(found, SamDataset) and type(found).item is not SamDataset.item:
        as_it_is = False
    return (found if as_it_is else None), index


def image_of(dataset: Dataset[Item], index: int) -> NDArray[np.uint8]:
    """Return the image of an item, (3, H, W), if possible without reading its masks."""
    own, number = _origin(dataset, index)
    image: NDArray[np.uint8] = dataset[index]["image"].numpy() if own is None else own.image(number)
    return image


def name_of_image(dataset: Dataset[Item], index: int) -> str:
    """Return the name of an image for messages, with its file if it is known."""
    own, number = _origin(dataset, index)
    return f"image {index}" if own is None else own.name(number, "image")


def target_of(dataset: Dataset[Item], index: int, objects: Choice | None = None) -> Item:
    """Return an item, without its image if the data set can skip reading it; see `item_of`."""
    own, number = _origin(dataset, index)
    return _picked(dataset, index, objects) if own is None else own.target(number, objects)


def item_of(dataset: Dataset[Item], index: int, objects: Choice | None = None) -> Item:
    """Return an item with some of its objects, if possible without making the other masks."""
    own, number = _origin(dataset, index)
    return _picked(dataset, index, objects) if own is None else own.item(number, objects)


def _picked(dataset: Dataset[Item], index: int, objects: Choice | None) -> Item:
    item = dataset[index]
    check_item(item, f"item {index} of the data set")
    if objects is None:
        return dict(item)
    return pick_objects(item, torch.from_numpy(np.asarray(objects(len(item["keys"])), np.int64)))


def instances_of(dataset: Dataset[Item], index: int, item: Item | None = None) -> Tensor | None:
    """Return the label map of all objects of an image, which may be in the item; None: none."""
    own, number = _origin(dataset, index)
    return own.instances(number) if own else (item or dataset[index]).get("instances")


def common_levels(train_set: Dataset[Item], val_set: Dataset[Item]) -> dict[str, Any] | None:
    """Return the gray levels of the training set, and print a warning if the others differ.

    Returns:
        For JSON, `dtype` of the images, and `window`, the values that are scaled to 0 and 255, or
        None for uint8; or None if they are not known.

    Raises:
        ValueError: The images of the two have different dtypes.
    """
    levels, other = (
        own.levels if size_of(each) and (own := _origin(each, 0)[0]) else None
        for each in (train_set, val_set)
    )
    if levels and other and other["dtype"] != levels["dtype"]:
        raise ValueError(
            f"val_set has images of dtype {other['dtype']}, but train_set {levels['dtype']}: "
            "convert them to one dtype, by the same rule"
        )
    if levels and other and other != levels:
        print0(
            "val_set and train_set have different gray levels: create val_set with "
            "SamDataset(..., window=train_set.window)"
        )
    return levels


def check_objects(train_set: Dataset[Item]) -> None:
    """Check that a training set has prompted objects.

    Raises:
        ValueError: There are no images, or none has one.
    """
    if not size_of(train_set):
        raise ValueError("train_set has no images: check the paths or arrays it was made from")
    if not has_objects(train_set):
        raise ValueError("train_set has no objects: its masks, or its coordinates, are empty")


def has_objects(dataset: Dataset[Item]) -> bool:
    """Return whether an image of a data set has a prompted object."""
    images = range(size_of(dataset))
    return any(len(target_of(dataset, i, lambda n: range(min(n, 1)))["keys"]) for i in images)


def shared_images(one: Dataset[Item], other: Dataset[Item]) -> int:
    """Return how many images two data sets share, as torch `Subset`s of the same data set."""
    (base, mine), (of, theirs) = (_indices(each) for each in (one, other))
    return len(mine & theirs) if base is of else 0


def _indices(dataset: Any) -> tuple[object, set[int]]:  # noqa: ANN401 -- a data set
    found = list(range(size_of(dataset)))
    while isinstance(dataset, Subset):
        dataset, found = dataset.dataset, [dataset.indices[i] for i in found]
    return dataset, {int(i) for i in found}


def training_size(train_set: Dataset[Item]) -> list[int]:
    """Return the shortest, the median and the longest of the longer sides of training images, px.

    At most 16 images are read.
    """
    sides = sorted(max(image_of(train_set, i).shape[1:]) for i in _some(train_set, 16))
    return [sides[0], sides[len(sides) // 2], sides[-1]]


def _some(dataset: Dataset[Item], most: int) -> list[int]:
    """Return the indices of at most so many images, evenly spaced, with the first and the last."""
    n = size_of(dataset)
    return sorted({int(i) for i in np.linspace(0, n - 1, min(n, most))})


def check_same_images(dataset: Dataset[Item], name: str) -> None:
    """Check that all ranks have the same images of a data set, and no split of their own.

    Raises:
        ValueError: They do not.
    """
    remedy = (
        "split the images in the same way on all ranks, such as by random_split(data, lengths, "
        "torch.Generator().manual_seed(0))"
    )
    check_same(name, (size_of(dataset, name), _chosen(dataset).hexdigest()), remedy)


def _chosen(dataset: object) -> Any:  # noqa: ANN401 -- a digest of hashlib
    """Return a digest of the indices of a torch `Subset`."""
    digest = hashlib.blake2b(digest_size=8)
    while isinstance(dataset, Subset):
        digest.update(repr(list(dataset.indices)).encode())
        dataset = dataset.dataset
    return digest


def summary_of(dataset: Dataset[Item]) -> str:
    """Return the number of images, and a digest of four, with some objects and all prompts.

    Items of another data set than `SamDataset` may differ each time, and are not in the digest.
    """
    digest = _chosen(dataset)

    def some(number: int) -> range:
        digest.update(str(number).encode())
        return range(min(number, 8))

    for i in _some(dataset, 4):
        own, number = _origin(dataset, i)
        if own is not None:
            item = {**own.item(number, some), **own.prompts(number)[1]}
            for each in item.values():
                digest.update(each.numpy().tobytes())
    known = _some(dataset, 1) and _origin(dataset, 0)[0]
    return f"{size_of(dataset)} images" + (f", digest {digest.hexdigest()}" if known else "")
