"""The order of the images, and what an epoch takes of each: objects, prompts and augmentation.

All choices depend only on the seed, the epoch and the index of an image. They are the same for any
number of ranks and data loading processes, and after an interruption.
"""

from __future__ import annotations

import copy
import hashlib
import math
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddp_magic.sam.arguments import check_flags, check_minimum
from ddp_magic.sam.arrays.items import Item, check_item, prompts_on
from ddp_magic.sam.data.access import check_same_images, instances_of, item_of, size_of
from ddp_magic.sam.data.augmentation import MonaiTransform
from ddp_magic.sam.data.batches import collate
from ddp_magic.sam.data.dataset import Choice
from ddp_magic.sam.process_group import all_gather, print0, rank_and_world

Transform = Callable[[Item, torch.Generator], Item]

LOST = 0.05  # of an image's contrast: a transform that keeps less has probably scaled it to 0..1
LOOKED = 32  # items in which such mistakes are looked for, by each process that loads
OBJECTS = 25  # maximum per image and step: each takes 0.1 GB a round with a SAM at 1024 pixels


def mix(*numbers: int) -> int:
    """Return a signed 64-bit number that depends on all `numbers`, integers of any size."""
    text = repr([operator.index(number) for number in numbers])  # NumPy's integers too
    found = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(found, "little", signed=True)


def generator(*numbers: int) -> torch.Generator:
    """Return a random generator with a seed that depends on all `numbers`."""
    return torch.Generator().manual_seed(mix(*numbers))


class RankSampler(Sampler[int | None]):
    """Give each rank its part of the images, in an order that differs between epochs.

    Together, the batches of all ranks are those of one rank with a larger batch.
    `DistributedSampler` repeats images if their number is not divisible by that of the ranks. Here
    a rank that has no image left gets the index None, for which `Sampled` returns an image without
    objects.
    """

    def __init__(self, dataset: Dataset[Item], seed: int = 0) -> None:
        """Shuffle the images of `dataset` with an integer `seed`; call `set_epoch` each epoch."""
        self.images, self.seed, self.epoch = size_of(dataset), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of indices of each rank, the same on all ranks."""
        return math.ceil(self.images / rank_and_world()[1])

    def __iter__(self) -> Iterator[int | None]:
        """Return the indices of this rank."""
        rank, world = rank_and_world()
        order = torch.randperm(self.images, generator=generator(self.seed, self.epoch)).tolist()
        return iter((order + [None] * (-self.images % world))[rank::world])


class Sampled(Dataset[Item]):
    """A data set with random objects, prompts and augmentation, which differ between epochs."""

    def __init__(
        self,
        dataset: Dataset[Item],
        seed: int = 0,
        *,
        objects: int = OBJECTS,
        transform: Transform | None = None,
        instances: bool = True,
    ) -> None:
        """Wrap a data set; call `set_epoch` at the start of each epoch.

        Args:
            dataset: the data set, such as a `SamDataset`.
            seed: seed for all choices, any integer.
            objects: maximum number of objects per image; 0: no maximum.
            transform: a function of an item and a `torch.Generator` that returns the augmented
                item. Use the generator for random numbers: it depends only on the seed, the epoch
                and the image.
            instances: whether to make the label map of all objects, for a decoder of instances or
                a transform (see `SamDataset.instances`).
        """
        size_of(dataset)
        _check_transform(transform)
        check_minimum(0, objects=objects)
        check_flags(instances=instances)
        self.dataset, self.seed, self.epoch = dataset, seed, 0
        self.objects, self.transform, self.instances = objects, transform, instances
        self._looked = 0  # how many items have been made in this process

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of images."""
        return size_of(self.dataset)

    def __getitem__(self, index: int | None) -> Item:
        """Return an item with this epoch's objects and keys, augmented by `transform`.

        Args:
            index: index of the image; None: any image, without objects.
        """
        if index is None:
            return self._item(0, lambda _: []) | {"index": -1}
        own = generator(self.seed, self.epoch, index)

        def some(number: int) -> Tensor:
            if not 0 < self.objects < number:
                return torch.arange(number)
            return torch.randperm(number, generator=own)[: self.objects].sort().values

        item = self._item(index, some)
        # Prompts depend on the keys of the objects, which stay unique.
        item["keys"] = item["keys"] ^ mix(self.seed, self.epoch)
        item["index"] = index
        self._looked += 1
        is_early = self._looked <= LOOKED
        changed = item
        if self.transform is not None:
            contrast = item["image"].float().std() if is_early else 0.0
            changed = self.transform(item, own)
            check_item(changed, f"item {index}, which transform returned")
            if is_early and changed["image"].float().std() < LOST * contrast:
                warnings.warn(
                    "transform has made an image flat: its gray levels must be from 0 to 255, for "
                    "example with ScaleIntensityd('image', 0, 255)",
                    stacklevel=2,
                )
        if is_early and prompts_on(changed) < 0.5:
            warnings.warn(
                f"most clicks or boxes of item {index} are not on their objects: they are in the "
                "order (x, y), and a transform must move them with the masks, or be a "
                "MonaiTransform, after which new clicks are drawn",
                stacklevel=2,
            )
        return changed

    def _item(self, index: int, objects: Choice) -> Item:
        item = dict(item_of(self.dataset, index, objects))
        if self.instances and (labels := instances_of(self.dataset, index, item)) is not None:
            item["instances"] = labels
        return item


def _check_transform(transform: object) -> None:
    """Refuse a transform of MONAI, whose second argument is not a generator.

    Raises:
        TypeError: It is one.
    """
    if type(transform).__module__.startswith("monai."):
        raise TypeError("transform is one of MONAI: pass MonaiTransform(transform)")


def epoch_loader(
    train_set: Dataset[Item] | DataLoader[Any],
    batch_size: int,
    seed: int,
    transform: Transform | None,
    *,
    decoder: object | None,
) -> tuple[DataLoader[Any], Sampled]:
    """Return the loader of a training set, and its data set.

    Args:
        train_set: a data set, or a loader of one, whose batches and processes are used. Its sampler
            must give all ranks the same number of batches. Its items are combined by `collate`
            unless it has a `collate_fn` of the user's own.
        batch_size: number of images per rank and step, if `train_set` is a data set.
        seed: seed for the order and the items.
        transform: augmentation of the items.
        decoder: the decoder of instances, if there is one. It needs the label map of all objects,
            which a transform of the user's own may use, too.

    Raises:
        TypeError: `train_set` is neither a data set nor a loader of one.
        ValueError: The loader has no batches, or the ranks have different numbers of them, or
            different data sets.
    """
    _check_transform(transform)
    check_minimum(None, seed=seed)
    given = train_set
    if not isinstance(given, DataLoader):
        check_same_images(given, "train_set")
        sampler: Any = RankSampler(given, seed)
        pinned = torch.cuda.is_available()
        given = DataLoader(given, int(batch_size), sampler=sampler, pin_memory=pinned)
    dataset = given.dataset
    size_of(dataset, "the data set of train_set")
    images = copy.copy(dataset) if isinstance(dataset, Sampled) else Sampled(dataset, seed)
    images.transform = transform or images.transform
    is_own = not isinstance(images.transform, (MonaiTransform, type(None)))
    images.instances = decoder is not None or is_own
    if given.batch_sampler is None or (len(dataset) and not len(given)):  # type: ignore[arg-type]
        raise ValueError("the loader has no batches: it needs a batch_size of at most its images")
    lengths = all_gather(len(given))
    if len(set(lengths)) > 1:
        raise ValueError(
            f"the loaders of the ranks have {', '.join(map(str, lengths))} batches, but each step "
            "needs all ranks: use sampler=RankSampler(dataset), or drop_last=True"
        )
    divides = any(hasattr(each, "set_epoch") for each in (given, *_samplers(given)))
    if len(lengths) > 1 and not divides:
        print0(
            "the sampler of the loader does not divide the images among the ranks: each draws from "
            "all images; sampler=RankSampler(dataset) gives each rank its part"
        )
    own: Any = given.collate_fn
    theirs = own.__module__.partition(".")[0] in {"torch", "monai"}  # the defaults of their loaders
    loader = copy.copy(given)
    vars(loader).update(  # a loader refuses to be assigned another data set
        dataset=images,
        collate_fn=collate if theirs else own,
        generator=torch.Generator(),  # so that loading does not change the global one
        persistent_workers=False,  # they would not see the next epoch
    )
    return loader, images


def set_epoch(loader: DataLoader[Any], epoch: int) -> None:
    """Set the epoch of a loader from `epoch_loader`: its order, items and random numbers."""
    images: Any = loader.dataset
    images.set_epoch(epoch)
    loader.generator.manual_seed(mix(images.seed, epoch))
    for sampler in _samplers(loader):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)


def _samplers(loader: DataLoader[Any]) -> list[Any]:
    batches: Any = loader.batch_sampler
    return [batches, getattr(batches, "sampler", None)]
