"""Sampling objects, and augmenting images, differently in each epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from ddp_magic.sam.dataset_access import item_of, size_of
from ddp_magic.sam.items import Item


class Sampled(Dataset[Item]):
    """A data set that samples objects, and augments images, differently in each epoch.

    The choices for an image depend only on the seed, the epoch and its index: they are the same for
    any number of ranks and workers, and after an interruption. Set `epoch` at the start of each
    epoch.
    """

    def __init__(
        self, dataset: Dataset[Item], seed: int, *, objects: int = 0, augment: bool = False
    ) -> None:
        """Wrap a data set.

        Args:
            dataset: the data set to sample from.
            seed: seed for all choices.
            objects: maximum number of objects per image; 0: all.
            augment: whether to flip images and rotate them by multiples of 90 degrees.
        """
        self.dataset, self.seed, self.epoch = dataset, seed, 0
        self.objects, self.augment = objects, augment

    def __len__(self) -> int:
        """Return the number of images."""
        return size_of(self.dataset)

    def __getitem__(self, index: int) -> Item:
        """Return one item with the objects sampled for this epoch, augmented if requested."""
        rng = np.random.default_rng([self.seed, self.epoch, index, 1])
        some = self.objects or None  # 0: all
        item = dict(item_of(self.dataset, index, lambda n: np.sort(rng.permutation(n)[:some])))
        item["keys"] = item["keys"] + (self.seed * 10_000 + self.epoch) * 2**36
        if not self.augment:
            return item
        position = int(np.random.default_rng([self.seed, self.epoch, index]).integers(8))
        return turn(item, mirror=position >= 4, quarters=position % 4)


def turn(item: Item, *, mirror: bool, quarters: int) -> Item:
    """Flip an item of a `SamDataset` horizontally, then rotate it counterclockwise.

    Args:
        item: image, masks and prompts.
        mirror: whether to flip.
        quarters: number of rotations by 90 degrees.

    Returns:
        The transformed item.
    """
    image, masks = item["image"], item["masks"]
    instances = item.get("instances", masks.new_zeros(masks.shape[1:]))
    points = torch.cat([item["points"], item["boxes"].view(-1, 2)])  # boxes as two corners
    if mirror:
        right = image.shape[2] - 1
        image, masks, instances = image.flip(2), masks.flip(2), instances.flip(1)
        points = torch.stack([right - points[:, 0], points[:, 1]], 1)
    for _ in range(quarters):
        right = image.shape[2] - 1
        image, masks = image.rot90(1, (1, 2)), masks.rot90(1, (1, 2))
        instances = instances.rot90(1, (0, 1))
        points = torch.stack([points[:, 1], right - points[:, 0]], 1)
    points, corners = points[: len(item["points"])], points[len(item["points"]) :]
    corners = corners.view(-1, 2, 2)
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    turned = {"image": image, "masks": masks, "instances": instances}
    if "ignored" in item:
        ignored = item["ignored"].flip(1) if mirror else item["ignored"]
        turned["ignored"] = ignored.rot90(quarters)
    return {**item, **turned, "points": points, "boxes": boxes}
