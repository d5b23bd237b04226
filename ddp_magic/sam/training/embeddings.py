"""Embeddings of a frozen encoder, computed once and stored on disk.

With ViT-B at 1024 pixels, encoding takes 99 % of the time of a training step.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.std import tqdm

from ddp_magic.sam.arrays.items import Item, without_objects
from ddp_magic.sam.data.access import image_of, size_of, target_of
from ddp_magic.sam.data.batches import collate, prepare
from ddp_magic.sam.data.dataset import Choice
from ddp_magic.sam.models.adapter import fingerprint
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.process_group import barrier, first_rank, rank_and_world
from ddp_magic.sam.training.checkpoint import check_space


class Embedded(Dataset[Item]):
    """A data set whose items have stored embeddings instead of the image."""

    def __init__(self, dataset: Dataset[Item], salt: str, digests: Path, files: list[Path]) -> None:
        """Memory-map the files, so that ranks share their memory.

        Args:
            dataset: the data set with the masks and prompts.
            salt: salt of the digests.
            digests: .npy file with the digests of the images, (n, 16) uint8.
            files: one .npy file for each tensor of the embeddings, (n, ...) float16.
        """
        self.dataset, self.salt, self.paths = dataset, salt, (digests, files)
        self.digests, *self.maps = (np.load(each, mmap_mode="r") for each in (digests, *files))

    def __len__(self) -> int:
        """Return the number of images."""
        return size_of(self.dataset)

    def __getitem__(self, index: int) -> Item:
        """Return one item with `embeddings`, a list of float16 tensors, instead of `image`.

        Raises:
            ValueError: The image is not the one that was encoded.
        """
        return self.item(index)

    def item(self, index: int, objects: Choice | None = None, *, instances: bool = True) -> Item:
        """Return one item with some of its objects; see `SamDataset.item`."""
        index = range(len(self))[index]
        stored = [torch.from_numpy(np.array(each[index])) for each in self.maps]
        item = target_of(self.dataset, index, objects, instances=instances)
        image = item.pop("image", None)
        if image is not None and (digest(image.numpy(), self.salt) != self.digests[index]).any():
            raise ValueError(
                f"image {index} has changed since it was encoded, and the encoder is frozen: "
                "augment images before training, or train the encoder too (see tune)"
            )
        return {**item, "embeddings": stored}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the file names instead of the arrays."""
        return Embedded, (self.dataset, self.salt, *self.paths)


class _Images(Dataset[Item]):
    """The images of a data set with their digests, without objects."""

    def __init__(self, dataset: Dataset[Item], salt: str) -> None:
        self.dataset, self.salt = dataset, salt

    def __len__(self) -> int:
        return size_of(self.dataset)

    def __getitem__(self, index: int) -> Item:
        image = image_of(self.dataset, index)  # (3, H, W)
        return without_objects(image) | {"digest": digest(image, self.salt)}


def digest(image: NDArray[np.uint8], salt: str) -> NDArray[np.uint8]:
    """Return a digest of 16 bytes of an image (3, H, W) and the salt."""
    found = hashlib.blake2b(image.tobytes(), digest_size=16, key=salt.encode())
    found.update(str(image.shape).encode())
    return np.frombuffer(found.digest(), np.uint8)


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
    rank, world = rank_and_world()
    device = next(wrapper.parameters()).device
    images = _Images(dataset, fingerprint(wrapper.sam) + wrapper.amp)
    if not len(images):
        return dataset
    first = prepare(collate([images[0]]), wrapper.geometry, device)
    shapes = [tuple(each.shape[1:]) for each in wrapper.encode(first["pixel_values"])]
    files = [folder / f"map{number}.npy" for number in range(len(shapes))]
    digests = folder / "digests.npy"
    wanted = [
        *((path, (len(images), *shape), np.float16) for path, shape in zip(files, shapes)),  # noqa: B905
        (digests, (len(images), 16), np.uint8),
    ]
    first_rank(lambda: _allocate(folder, wanted))
    if not digests.exists():
        raise FileNotFoundError(f"not all ranks can see {folder}: pass an out_dir that they share")
    maps = [np.load(path, mmap_mode="r+") for path in files]
    known = np.load(digests, mmap_mode="r+")
    shard = Subset(images, range(rank, len(images), world))
    loader = DataLoader(shard, batch_size, num_workers=workers, collate_fn=list)
    bar = tqdm(total=len(shard), desc="embeddings", disable=rank != 0 or len(shard) < 2, ncols=60)
    for start, items in enumerate(loader):
        numbers = np.asarray(shard.indices)[start * batch_size :][: len(items)]
        found = np.stack([item["digest"] for item in items])
        new = (known[numbers] != found).any(1)
        if new.any():
            todo = [item for item, is_new in zip(items, new, strict=True) if is_new]
            batch = prepare(collate(todo), wrapper.geometry, device)
            for stored, each in zip(maps, wrapper.encode(batch["pixel_values"]), strict=True):
                stored[numbers[new]] = each.half().cpu().numpy()
            known[numbers[new]] = found[new]  # last: marks them as complete
        bar.update(len(items))
    bar.close()
    for each in (*maps, known):
        each.flush()
    barrier()
    return Embedded(dataset, images.salt, digests, files)


def _allocate(folder: Path, wanted: list[tuple[Path, tuple[int, ...], Any]]) -> None:
    """Create .npy files of these shapes and dtypes, unless they exist, with all their space.

    Raises:
        OSError: The disk has too little space. Writing to a file without space would be a SIGBUS.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if all(_fits(*each) for each in wanted):
        return
    for path, _, _ in wanted:
        path.unlink(missing_ok=True)
    need = sum(math.prod(shape) * np.dtype(kind).itemsize for _, shape, kind in wanted)
    check_space(folder, need, f"the embeddings of {wanted[0][1][0]} images")
    for path, shape, kind in wanted:
        np.lib.format.open_memmap(path, "w+", kind, shape).flush()
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _fits(path: Path, shape: tuple[int, ...], kind: type) -> bool:
    """Return whether a stored array has this shape and dtype."""
    if not path.exists():
        return False
    stored = np.load(path, mmap_mode="r")
    return bool(stored.shape == shape and stored.dtype == kind)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Create a temporary folder for all ranks, and remove it at the end."""
    made = Path(first_rank(lambda: tempfile.mkdtemp(prefix="sam-embeddings-")))
    try:
        yield made
    finally:
        if rank_and_world()[0] == 0:
            shutil.rmtree(made, ignore_errors=True)
