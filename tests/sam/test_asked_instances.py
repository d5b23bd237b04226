"""The label map of an item is made only where something needs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from ddp_magic.prelude import (
    MonaiTransform,
    PromptedSam,
    SamDataset,
    Sampled,
    cells,
    evaluate,
    instance_decoder,
    tiny_sam,
    train,
    tune,
)
from ddp_magic.sam.arrays.items import Item


class Watched(SamDataset):
    """Notes whether label maps are made."""

    made: list[bool]

    def target(self, index: int, objects: Any = None, *, instances: bool = True) -> Item:
        """Return an item without its image."""
        item = super().target(index, objects, instances=instances)
        vars(self).setdefault("made", []).append("instances" in item)
        return item


class Mirrored(SamDataset):
    """A data set of a user, who knows nothing of `instances` as an argument."""

    def item(self, index: int, objects: Any = None) -> Item:  # type: ignore[override]
        """Return an item and turn it upside down."""
        item = super().item(index, objects)
        return item | {name: item[name].flip(-2) for name in ("image", "masks", "instances")}


def watched() -> Watched:
    """Return a few cells, all of which are prompted."""
    images, masks, _ = cells(n=4)
    return Watched(images, masks)


def with_decoder() -> nn.Module:
    """Return a model with a decoder of instances."""
    model = tiny_sam()
    return PromptedSam(model, auxiliary=instance_decoder(model))


def test_the_rest_of_an_item_stays_the_same() -> None:
    """Also with ignored pixels, and for an object in use."""
    images, masks, _ = cells(n=1)
    data = SamDataset(images, masks, ignore_label=2)
    for objects in (None, lambda _: [1]):
        whole, without = data.item(0, objects), data.item(0, objects, instances=False)
        assert whole.pop("instances").min() == -1
        torch.testing.assert_close(without, whole, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["set", "subset", "loader", "frozen", "flipped"])
def test_training_prompts_makes_no_label_map(kind: str) -> None:
    """Neither for its steps, nor for the scores of held-out objects."""
    data, model, options = watched(), tiny_sam(), {}
    given: Any = {
        "subset": Subset(data, [0, 2]),
        "loader": DataLoader(data, 2, collate_fn=None),
    }.get(kind, data)
    if kind == "frozen":
        tune(model, "decoder")
    if kind == "flipped":
        from monai.transforms import RandFlipd

        options = {"transform": MonaiTransform(RandFlipd(["image", "masks"], 1.0, spatial_axis=1))}
    train(model, given, data, epochs=1, batch_size=2, **options)
    assert len(data.made) >= 8
    assert not any(data.made)


def test_what_needs_label_maps_gets_them() -> None:
    """A decoder of instances, scores of whole images, and a transform of the user's own."""
    data = watched()
    train(with_decoder(), data, SamDataset(*cells(n=1)), epochs=1, batch_size=2)
    assert sum(data.made) == 4
    assert "ap_50" in evaluate(tiny_sam(), data, instances=True)
    assert sum(data.made) == 8
    seen: list[bool] = []

    def note(item: Item, _: torch.Generator) -> Item:
        seen.append("instances" in item)
        return item

    train(tiny_sam(), data, data, epochs=1, batch_size=2, transform=note)
    assert seen == [True] * 4


def test_the_data_set_of_a_user_works_as_before() -> None:
    """It overrides `item(index, objects)`, and changes the label map, too."""
    images, masks, _ = cells(n=4)
    data, plain = Mirrored(images, masks), SamDataset(images, masks)
    for model in (tiny_sam(), with_decoder()):
        (row,) = train(model, data, data, epochs=1, batch_size=2)
        assert np.isfinite(row["train_loss"])
    item = Sampled(data, instances=False)[1]
    assert torch.equal(item["masks"], plain[1]["masks"].flip(-2))
    assert torch.equal(item["instances"], plain[1]["instances"].flip(-2))
