"""Embeddings of a frozen encoder, computed once and stored on disk.

With ViT-B at 1024 pixels, encoding takes 99 % of the time of a training step.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ddp_magic.sam.arrays.items import Item, without_objects
from ddp_magic.sam.data.access import image_of, instances_of, name_of_image, size_of, target_of
from ddp_magic.sam.data.batches import collate, prepare
from ddp_magic.sam.data.dataset import Choice, SamDataset
from ddp_magic.sam.data.sampling import Sampled
from ddp_magic.sam.models.adapter import fingerprint, is_frozen
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.process_group import all_gather, bar, first_rank, rank_and_world
from ddp_magic.sam.training.out_dir import check_space


class Embedded(Dataset[Item]):
    """A data set whose items have stored embeddings instead of the image."""

    def __init__(self, dataset: Dataset[Item], salt: str, files: list[Path]) -> None:
        """Store the data set with the masks and prompts, and the file of each image."""
        self.dataset, self.salt, self.files = dataset, salt, files

    def __len__(self) -> int:
        """Return the number of images."""
        return size_of(self.dataset)

    __getitem__ = SamDataset.__getitem__  # for `access`: items come from the methods below

    def item(self, index: int, objects: Choice | None = None) -> Item:
        """Return one item with `embeddings`, a list of float16 tensors, instead of `image`.

        Raises:
            ValueError: The image is not the one that was encoded.
        """
        index = range(len(self))[index]
        item = target_of(self.dataset, index, objects)
        image = item.pop("image", None)
        if image is not None and name_of(image.numpy(), self.salt) != self.files[index].name:
            raise ValueError(
                f"image {index} has changed since it was encoded, and the encoder is frozen: "
                "augment images before training, or train the encoder too (see tune)"
            )
        maps = load_file(self.files[index])
        return {**item, "embeddings": [maps[name] for name in sorted(maps)]}

    def instances(self, index: int) -> Tensor | None:
        """Return the label map of all objects of an image."""
        return instances_of(self.dataset, index)

    def name(self, index: int, _kind: str) -> str:
        """Return the name of an image for messages."""
        return name_of_image(self.dataset, index)


class _Images(Dataset[Item]):
    """Some images of a data set, without objects, with the names of their files."""

    def __init__(self, dataset: Dataset[Item], numbers: range, salt: str) -> None:
        self.dataset, self.numbers, self.salt = dataset, numbers, salt

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Item:
        image = image_of(self.dataset, self.numbers[index])  # (3, H, W)
        return without_objects(image) | {"name": name_of(image, self.salt)}


def name_of(image: NDArray[np.uint8], salt: str) -> str:
    """Return the name of the file of an image (3, H, W), which depends on its pixels."""
    found = hashlib.blake2b(image.tobytes(), digest_size=16, key=salt.encode())
    found.update(str(image.shape).encode())
    return f"{found.hexdigest()}.safetensors"


@torch.no_grad()
def store_embeddings(
    wrapper: PromptedSam,
    dataset: Dataset[Item],
    folder: Path,
    *,
    batch_size: int = 8,
    workers: int = 0,
) -> Dataset[Item]:
    """Encode each image once, and store the embeddings in `folder` as float16.

    This is a collective: each rank encodes a part of the images. Embeddings that `folder` already
    contains for the same image and the same weights are used again.

    Args:
        wrapper: the model.
        dataset: the same data set on all ranks.
        folder: folder that all ranks share; created if necessary.
        batch_size: number of images per batch.
        workers: number of data loading processes per rank.

    Returns:
        The data set with stored embeddings, which take 2 MB per image at 1024 pixels; or `dataset`
        if it has no images.

    Raises:
        FileNotFoundError: A rank cannot see the folder.
        OSError: The disk has too little space.
    """
    (rank, world), n = rank_and_world(), size_of(dataset)
    device, salt = next(wrapper.parameters()).device, fingerprint(wrapper.sam) + wrapper.amp
    if not n:
        return dataset
    weights = hashlib.blake2b(salt.encode(), digest_size=8).hexdigest()
    first_rank(lambda: _prepare(folder, weights))
    folder /= weights
    own = _Images(dataset, range(rank, n, world), salt)
    loader = DataLoader(own, batch_size, num_workers=workers, collate_fn=list)
    progress = bar(what="embeddings", shown=len(own) > 1, total=len(own))
    names: list[str] = []
    checked = False
    for items in loader:
        new = {item["name"]: item for item in items if not (folder / item["name"]).exists()}
        if new:
            batch = prepare(collate(list(new.values())), wrapper.geometry, device)
            maps = [each.half().cpu() for each in wrapper.encode(batch["pixel_values"])]
            if not checked:
                need = sum(each[0].nbytes for each in maps) * (n - len(names) * world)
                check_space(folder, need, f"the embeddings of {n} images")
                checked = True
            for number, name in enumerate(new):
                part = folder / f"{name}.{rank}.part"  # renamed, so that it is always complete
                save_file({str(i): each[number].contiguous() for i, each in enumerate(maps)}, part)
                part.replace(folder / name)
        names += [item["name"] for item in items]
        progress.update(len(items))
    progress.close()
    every = all_gather(names)
    files = [folder / every[i % world][i // world] for i in range(n)]
    if not all(all_gather(all(map(os.path.exists, files)))):
        raise FileNotFoundError(f"not all ranks can see {folder}: pass an out_dir that they share")
    return Embedded(dataset, salt, files)


def _prepare(folder: Path, weights: str) -> None:
    """Create the folder for these weights, and remove the embeddings of others."""
    (folder / weights).mkdir(parents=True, exist_ok=True)
    for other in folder.iterdir():
        if other.name != weights:
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def encoded_once(
    wrapper: PromptedSam, loader: DataLoader[Any], val_set: Dataset[Item], out_dir: Path | None
) -> Iterator[Dataset[Item]]:
    """Let a frozen encoder encode each image once, for a `with` block. Collective.

    Args:
        wrapper: the model; nothing changes if its encoder is trained.
        loader: a loader of `Sampled`, whose data set becomes one of stored embeddings.
        val_set: the held-out data set. The same, or one of stored embeddings, is returned.
        out_dir: folder in which the embeddings are kept; None: a temporary one.
    """
    if not is_frozen(wrapper.sam):
        yield val_set
        return
    own = None if out_dir else first_rank(lambda: tempfile.mkdtemp(prefix="sam-embeddings-"))
    folder = out_dir / "embeddings" if out_dir else Path(str(own))
    images, workers = cast("Sampled", loader.dataset), loader.num_workers
    try:
        images.dataset = store_embeddings(wrapper, images.dataset, folder, workers=workers)
        yield store_embeddings(wrapper, val_set, folder, workers=workers)
    finally:
        if own and rank_and_world()[0] == 0:
            shutil.rmtree(own, ignore_errors=True)
