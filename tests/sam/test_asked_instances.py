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
    """Notes when label maps are made."""

    made: int = 0

    def instances(self, index: int) -> torch.Tensor:
        """Return a label map."""
        self.made += 1
        return super().instances(index)


class Mirrored(SamDataset):
    """A data set of a user, whose items have no label map, or one that it has turned too."""

    with_maps = False

    def item(self, index: int, objects: Any = None) -> Item:
        """Return an item and turn it upside down."""
        item = super().item(index, objects)
        item |= {"instances": self.instances(index)} if self.with_maps else {}
        return {
            k: v.flip(-2) if k in {"image", "masks", "instances"} else v for k, v in item.items()
        }


def watched() -> Watched:
    """Return a few cells, all of which are prompted."""
    images, masks, _ = cells(n=4)
    return Watched(images, masks)


def with_decoder() -> nn.Module:
    """Return a model with a decoder of instances."""
    model = tiny_sam()
    return PromptedSam(model, auxiliary=instance_decoder(model))


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
    assert not data.made


def test_what_needs_label_maps_gets_them() -> None:
    """A decoder of instances, scores of whole images, and a transform of the user's own."""
    data = watched()
    train(with_decoder(), data, SamDataset(*cells(n=1)), epochs=1, batch_size=2)
    assert data.made == 4
    assert "ap_50" in evaluate(tiny_sam(), data, instances=True)
    assert data.made == 8
    seen: list[bool] = []

    def note(item: Item, _: torch.Generator) -> Item:
        seen.append("instances" in item)
        return item

    train(tiny_sam(), data, data, epochs=1, batch_size=2, transform=note)
    assert seen == [True] * 4


def test_the_data_set_of_a_user_is_respected() -> None:
    """It overrides `item(index, objects)`, and adds a label map, if one is needed."""
    images, masks, _ = cells(n=4)
    data, plain = Mirrored(images, masks), SamDataset(images, masks)
    (row,) = train(tiny_sam(), data, data, epochs=1, batch_size=2)
    assert np.isfinite(row["train_loss"])
    with pytest.raises(ValueError, match='items have no label map: add "instances"'):
        train(with_decoder(), data, data, epochs=1, batch_size=2)
    data.with_maps = True
    (row,) = train(with_decoder(), data, data, epochs=1, batch_size=2)
    assert np.isfinite(row["train_loss"])
    item = Sampled(data)[1]
    assert torch.equal(item["masks"], plain[1]["masks"].flip(-2))
    assert torch.equal(item["instances"], plain.instances(1).flip(-2))
