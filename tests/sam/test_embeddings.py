"""A frozen encoder encodes each image once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, random_split

from ddp_magic.prelude import SamDataset, cells, tiny_sam, train
from ddp_magic.sam.data.batches import collate, prepare
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.tuning import tune
from ddp_magic.sam.training import checkpoint
from ddp_magic.sam.training.embeddings import Embedded, store_embeddings


def _count(sam: Any) -> list[int]:
    seen: list[int] = []
    sam.vision_encoder.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    return seen


def test_stored_equals_computed(tmp_path: Path) -> None:
    """Masks from stored embeddings equal those from the image, up to float16 precision."""
    data, wrapper = SamDataset(*cells(n=5)), PromptedSam(tiny_sam().eval(), rounds=1)
    stored = store_embeddings(wrapper, data, tmp_path, batch_size=2)
    assert isinstance(stored, Embedded)
    with torch.no_grad():
        ((a, _),) = wrapper(prepare(collate([data[i] for i in (4, 1)]), wrapper.geometry))
        ((b, _),) = wrapper(prepare(collate([stored[i] for i in (4, 1)]), wrapper.geometry))
    assert (a - b).abs().max() < 0.02
    assert "image" not in stored[0]
    assert stored[0]["embeddings"][0].dtype == torch.float16


def test_each_image_is_encoded_once(tmp_path: Path) -> None:
    """Further epochs, and another training with the same encoder, encode no image again."""
    sets = SamDataset(*cells(n=6)), SamDataset(*cells(n=3, seed=1))
    sam = tune(tiny_sam(), "decoder")
    seen = _count(sam)
    wrapper = PromptedSam(sam, rounds=1)
    options: dict[str, Any] = {"batch_size": 2, "out_dir": tmp_path, "overwrite": True}
    train(wrapper, *sets, epochs=2, **options)
    assert sum(seen) == 6 + 3
    seen.clear()
    train(wrapper, *sets, epochs=1, **options)
    assert not seen
    images, masks, clicks = cells(n=6)
    images[2] = 255 - images[2]
    train(wrapper, SamDataset(images, masks, clicks), sets[1], epochs=1, **options)
    assert sum(seen) == 1
    train(tune(tiny_sam(seed=1), "decoder"), *sets, epochs=1, **options)
    assert sum(seen) == 1
    (folder,) = (tmp_path / "embeddings").iterdir()  # those of the other weights are removed
    assert len(list(folder.iterdir())) == 6 + 3


def test_augmentation_is_refused() -> None:
    """Augmented images would need new embeddings; the error says so."""
    sets = SamDataset(*cells(n=2)), SamDataset(*cells(n=2, seed=1))
    sam = tune(tiny_sam(), "decoder")
    with pytest.raises(ValueError, match="transform cannot change images that a frozen encoder"):
        train(sam, *sets, epochs=1, transform=lambda item, _: item)


def test_a_disk_that_is_too_small_is_told_before_images_are_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first batch, which says how large they are."""
    sam = tune(tiny_sam(), "decoder")
    data = SamDataset(*cells(n=2))
    seen = _count(sam)
    free = SimpleNamespace(free=10**5)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: free)
    many = Subset(data, [0, 1] * 99)
    with pytest.raises(OSError, match=r"free space, but the embeddings of .* images take"):
        store_embeddings(PromptedSam(sam), many, tmp_path)
    assert sum(seen) == 2
    assert not list(tmp_path.glob("*/*"))


def test_subsets_and_concatenated_sets_are_data_sets(tmp_path: Path) -> None:
    """With a frozen encoder, parts of random_split, nested Subsets and ConcatDataset work."""
    data = SamDataset(*cells(n=8))
    train_set, val_set = random_split(data, [6, 2])
    sam = PromptedSam(tune(tiny_sam(), "decoder"), rounds=1)
    row = train(sam, train_set, val_set, epochs=1, batch_size=3)[-1]
    assert row["count"] == sum(len(data[i]["keys"]) for i in val_set.indices)
    unscored = train(sam, train_set, Subset(data, []), epochs=1)[-1]
    assert unscored["count"] == 0
    both = ConcatDataset([data, SamDataset(*cells(n=2, seed=1))])
    for part, numbers in ((Subset(Subset(data, [5, 3, 1]), [2, 0]), [1, 5]), (both, range(10))):
        wrapper = PromptedSam(tiny_sam().eval(), rounds=1)
        stored = store_embeddings(wrapper, part, tmp_path / str(len(part)))
        for item, i in zip((stored[k] for k in range(len(part))), numbers, strict=True):
            assert torch.equal(item["masks"], both[i]["masks"])
            batch = prepare(collate([both[i]]), wrapper.geometry)
            with torch.no_grad():
                (true,) = wrapper.encode(batch["pixel_values"])
            assert (item["embeddings"][0] - true[0]).abs().max() < 0.01


def test_a_subclass_of_the_users_own_is_respected(tmp_path: Path) -> None:
    """The images and masks that its __getitem__ returns are encoded and trained."""

    class Inverted(SamDataset):
        def __getitem__(self, index: int) -> Any:
            item = super().__getitem__(index)
            return item | {"image": 255 - item["image"], "masks": item["masks"].flip(2)}

    images, masks, clicks = cells(n=2)
    wrapper = PromptedSam(tiny_sam().eval(), rounds=1)
    own = store_embeddings(wrapper, Inverted(images, masks, clicks), tmp_path / "own")
    plain = store_embeddings(wrapper, SamDataset(255 - images, masks, clicks), tmp_path / "plain")
    assert torch.equal(own[1]["embeddings"][0], plain[1]["embeddings"][0])
    assert torch.equal(own[1]["masks"], plain[1]["masks"].flip(2))


def test_a_set_with_random_images_is_refused() -> None:
    """Flipped masks would not match the stored embeddings."""

    class Drawn(SamDataset):
        def __getitem__(self, index: int) -> Any:
            item = super().__getitem__(index)
            if torch.rand(()) < 0.5:
                item |= {"image": item["image"].flip(-1), "masks": item["masks"].flip(-1)}
            return item

    data = SamDataset(*cells(n=2))
    with pytest.raises(ValueError, match=r"image \d has changed since it was encoded"):
        train(tune(tiny_sam(), "decoder"), Drawn(*cells(n=9)[:2]), data, epochs=3)


@pytest.mark.parametrize("kind", ["set", "part of a part", "two sets as one"])
def test_boxes_in_parts_of_sets_are_learned(kind: str) -> None:
    """Parameters that only boxes use are trained if any object of the data set has a box."""
    images, masks, clicks = cells(n=4)
    corners = [np.argwhere(masks[i] == masks[i, y, x]) for i, y, x in clicks]
    boxes = [(i, *at.min(0), *at.max(0)) for (i, *_), at in zip(clicks, corners, strict=True)]
    boxed = SamDataset(images, masks, boxes=boxes)
    data: Any = {
        "set": boxed,
        "part of a part": Subset(Subset(boxed, range(4)), range(4)),
        "two sets as one": ConcatDataset([SamDataset(images, masks), boxed]),
    }[kind]
    sam: Any = tiny_sam()
    before = [each.weight.detach().clone() for each in sam.prompt_encoder.point_embed]
    train(PromptedSam(sam, rounds=1), data, boxed, epochs=1, batch_size=2)
    corner = 2  # of the four embeddings: off, on, and the two corners of a box
    assert not torch.equal(sam.prompt_encoder.point_embed[corner].weight, before[corner])
