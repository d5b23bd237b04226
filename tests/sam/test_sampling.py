"""The order of the images, the choice of objects, and what transforms may return."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from monai.transforms import (
    Compose,
    Lambdad,
    NormalizeIntensityd,
    RandFlipd,
    ScaleIntensityd,
)
from skimage.measure import regionprops
from torch.utils.data import DataLoader, Dataset

from ddp_magic.sam.data.augmentation import MonaiTransform
from ddp_magic.sam.data.dataset import SamDataset
from ddp_magic.sam.data.samples import cells
from ddp_magic.sam.data.sampling import LOOKED, RankSampler, Sampled, generator
from ddp_magic.sam.evaluation.evaluate import evaluate
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.tiny import tiny_sam
from ddp_magic.sam.training.loop import train

BOTH = ["image", "masks"]


def test_each_epoch_has_its_order_and_each_image_once() -> None:
    """All images, in another order in another epoch or with another seed."""
    data, orders = SamDataset(*cells(n=9)), []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        sampler = RankSampler(data, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(9))
        assert len(sampler) == 9
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("seed", [0, -1, 2**31, 10**12, 2**63, 2**64 + 1, -(10**30)])
def test_seeds_of_any_size(seed: int) -> None:
    """Each gives its own order, objects and keys, which are unique in the data set."""
    data = SamDataset(*cells(n=6))
    found = []
    for number in (seed, seed, seed + 1):
        sampled = Sampled(data, number, objects=2)
        sampled.set_epoch(10**6)
        keys = torch.cat([sampled[i]["keys"] for i in range(6)])
        assert len(keys.unique()) == len(keys) == 12
        found.append((list(RankSampler(data, number)), keys.tolist()))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1] != found[2][1]


def test_a_rank_without_an_image_gets_one_without_objects() -> None:
    """The index None is an image that does not count."""
    filled = Sampled(SamDataset(*cells(n=2)))[None]
    assert filled["image"].shape == (3, 64, 64)
    assert [len(filled[name]) for name in ("masks", "keys", "points", "boxes")] == [0] * 4


def test_objects_and_keys_differ_between_epochs() -> None:
    """At most `objects`, with their own clicks; the same in each run."""
    sampled, chosen = Sampled(SamDataset(*cells(n=1)), seed=5, objects=2), []
    for epoch in (0, 0, 1, 2, 3):
        sampled.set_epoch(epoch)
        one = sampled[0]
        assert len(one["masks"]) == len(one["keys"]) == len(one["points"]) == 2
        for mask, (x, y) in zip(one["masks"], one["points"].long(), strict=True):
            assert mask[y, x]
        chosen.append(one["keys"].tolist())
    assert chosen[0] == chosen[1]
    assert len({tuple(keys) for keys in chosen}) == 4


@pytest.mark.parametrize(
    "change",
    [
        MonaiTransform(ScaleIntensityd("image")),
        MonaiTransform(NormalizeIntensityd("image")),
        MonaiTransform(Lambdad("image", lambda image: image * 0 + 7)),
        lambda item, _: item | {"image": (item["image"] / 255).to(torch.uint8)},
    ],
)
def test_a_transform_that_makes_the_image_black_is_told(change: Any) -> None:
    """Those of MONAI scale to 0..1, or to a variance of 1, unless they are told otherwise."""
    data = SamDataset(*cells(n=2))
    with pytest.warns(UserWarning, match="made an image flat: its gray levels must be from 0"):
        _ = Sampled(data, transform=change)[1]
    _ = Sampled(data, transform=MonaiTransform(ScaleIntensityd("image", 0, 255)))[1]


def _with(**made: Any) -> Any:
    """Return a transform that replaces entries."""
    return lambda item, _: item | {name: change(item[name]) for name, change in made.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with(image=lambda x: x / 255), "image must be a tensor .3, H, W. uint8, but is torch.f"),
        (_with(image=lambda x: x.permute(1, 2, 0)), r"but is torch.uint8 \(64, 48, 3\)"),
        (_with(image=lambda x: x[:1]), r"but is torch.uint8 \(1, 64, 48\)"),
        (_with(image=lambda x: x.numpy()), r"but is uint8 \(3, 64, 48\)"),
        (_with(image=lambda x: x[:, :40]), r"masks .* is torch.bool \(.*64, 48\); so far, H 40"),
        (_with(masks=lambda x: x * 0.4), "masks must be a tensor .N, H, W. bool, but is torch.f"),
        (_with(masks=lambda x: x[:1]), "counts must be a tensor"),
        (_with(instances=lambda x: x.float()), "instances must be a tensor .H, W. int"),
        (_with(instances=lambda x: x.T), "instances must be a tensor .H, W. int"),
        (lambda item, _: {"image": item["image"]}, "masks must be a tensor .N, H, W. bool, but is"),
        (lambda item, _: (item["image"], item["masks"]), "must be a dict.* not tuple"),
        (lambda *_: None, "must be a dict.* not NoneType"),
    ],
)
def test_a_transform_must_return_an_item(change: Any, message: str) -> None:
    """Fractions would be black as uint8, other sizes would be padded, half a mask a whole one."""
    images, masks, _ = cells(n=2)
    data = SamDataset(images[:, :, :48], masks[:, :, :48])
    with pytest.raises((TypeError, ValueError), match=f"(?s)item 1, which transform.*{message}"):
        _ = Sampled(data, transform=change)[1]
    with pytest.raises((TypeError, ValueError), match=r"item 0 of a batch|item 1"):
        evaluate(tiny_sam(), _Changed(data, change))  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError), match="item 0 of the data set"):
        train(tiny_sam(), _Changed(data, change), data)  # type: ignore[arg-type]


class _Changed(Dataset[Any]):
    """A data set of the user's own, with label maps."""

    def __init__(self, data: SamDataset, change: Any) -> None:
        self.data, self.change = data, change

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        item = self.data[index] | {"instances": self.data.instances(index)}
        return self.change(item, generator(index))


def _flipped(item: Any, _: Any) -> Any:
    """Flip an item, but not its prompts."""
    return item | {name: item[name].flip(-1) for name in ("image", "masks")}


def _followed(item: Any, _: Any) -> Any:
    """Flip an item with its prompts."""
    points, boxes = item["points"].clone(), item["boxes"][:, [2, 1, 0, 3]]
    points[:, 0], boxes[:, ::2] = 63 - points[:, 0], 63 - boxes[:, ::2]
    return _flipped(item, _) | {"points": points, "boxes": boxes}


@pytest.mark.parametrize("prompts", ["clicks", "boxes"])
def test_prompts_that_are_not_on_their_objects_are_told(prompts: str) -> None:
    """Those of the data set stay where the object was, unless the transform moves them."""
    images, masks, clicks = cells(n=1)
    if prompts == "boxes":
        found = regionprops(masks[0])
        rows = [(0, *each.bbox[:2], each.bbox[2] - 1, each.bbox[3] - 1) for each in found]
        data = SamDataset(images, masks, boxes=rows)
    else:
        data = SamDataset(images, masks, clicks)
    swapped = data[0]
    swapped |= {"points": swapped["points"].flip(1), "boxes": swapped["boxes"][:, [1, 0, 3, 2]]}
    for wrong in (Sampled(data, transform=_flipped), Sampled(_Changed(data, lambda *_: swapped))):
        with pytest.warns(UserWarning, match="item 0 are not on their objects: .* order .x, y."):
            _ = wrong[0]
        for _ in range(LOOKED):  # it is not looked for in all items: of large ones it takes long
            with contextlib.suppress(UserWarning):
                _ = wrong[0]
        _ = wrong[0]
    _ = Sampled(data, transform=_followed)[0]
    _ = Sampled(data, transform=MonaiTransform(RandFlipd(BOTH, 1.0, 1)))[0]
    _ = Sampled(SamDataset(images, masks), transform=_flipped)[0]


def test_a_transform_of_monai_is_wrapped() -> None:
    """MONAI would take the generator for the number of the first transform."""
    with pytest.raises(TypeError, match=r"pass MonaiTransform\(transform\)"):
        Sampled(SamDataset(*cells(n=2)), transform=Compose([RandFlipd(BOTH, 0.5, 1)]))  # type: ignore[arg-type]


class Noted(SamDataset):
    """Keeps the random number that a loading process draws for each item as its gray level."""

    def __getitem__(self, index: int) -> Any:
        item = super().__getitem__(index)
        return item | {"image": torch.full_like(item["image"], int(torch.randint(256, ())))}


def test_loading_processes_draw_new_numbers_in_each_epoch() -> None:
    """Random augmentation in a process differs between epochs."""
    data, drawn = Noted(*cells(n=2)), []
    wrapper = PromptedSam(tiny_sam(), rounds=1)
    wrapper.sam.vision_encoder.register_forward_pre_hook(
        lambda module, args: drawn.append(float(args[0].mean())) if module.training else None
    )
    images: Dataset[Any] = data
    train(wrapper, DataLoader(images, 2, num_workers=1), SamDataset(*cells(n=1)), epochs=3)
    assert len(set(drawn)) == 3
