"""Augmentation by the transforms of MONAI."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    DeleteItemsd,
    EnsureChannelFirstd,
    Flipd,
    Lambdad,
    OneOf,
    Rand2DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGridDistortiond,
    RandRotate90d,
    RandRotated,
    RandSimulateLowResolutiond,
    RandSmoothDeformd,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
    RandZoomd,
    Rotate90d,
    Transposed,
)

from ddp_magic.sam.data.augmentation import MonaiTransform
from ddp_magic.sam.data.dataset import SamDataset
from ddp_magic.sam.data.samples import cells
from ddp_magic.sam.data.sampling import generator

BOTH = ["image", "masks"]


@pytest.fixture(scope="module")
def item() -> Any:
    """An item whose image shows its masks, with clicks on each object."""
    _, masks, clicks = cells(n=1)
    data = SamDataset((masks * 40).astype(np.uint8), masks, clicks)
    return data[0] | {"instances": data.instances(0)}


@pytest.mark.parametrize(
    "transform",
    [
        RandFlipd(BOTH, prob=1.0, spatial_axis=1),
        RandRotate90d(BOTH, prob=1.0),
        RandZoomd(BOTH, prob=1.0, min_zoom=0.6, mode=["area", "nearest"], padding_mode="constant"),
        Rand2DElasticd(BOTH, (16, 16), (1, 2), prob=1.0, mode=["bilinear", "nearest"]),
    ],
)
def test_masks_follow_the_image(item: Any, transform: Any) -> None:
    """An object is where its gray level is, and the prompts are drawn anew."""
    changed = MonaiTransform(transform)(item, generator(1))
    assert not torch.equal(changed["image"], item["image"])
    assert changed["image"].dtype == torch.uint8
    assert changed["masks"].dtype == torch.bool
    for mask, before in zip(changed["masks"], item["masks"], strict=True):
        gray = item["image"][0][before].float().mean()
        assert (changed["image"][0][mask].float() - gray).abs().mean() < 12  # but for the border
    union = changed["masks"].any(0)
    assert torch.equal(changed["instances"] > 0, union)  # all objects are prompted
    assert changed["counts"].tolist() == [0] * len(item["masks"])
    assert len(changed["points"]) == 0


def test_gray_levels_are_transformed_within_their_range(item: Any) -> None:
    """Noise and contrast change the image only, from 0 to 255; the generator determines them."""
    change = MonaiTransform(
        RandGaussianNoised("image", prob=1.0, std=90), RandAdjustContrastd("image", prob=1.0)
    )
    one, again, other = (change(item, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one["image"], again["image"])
    assert not torch.equal(one["image"], other["image"])
    assert torch.equal(one["masks"], item["masks"])
    assert isinstance(pickle.loads(pickle.dumps(change)), MonaiTransform)


def test_labels_are_moved_exactly(item: Any) -> None:
    """Also labels that float32 cannot hold, and ignored pixels; interpolated ones are refused."""
    labels = torch.zeros(item["instances"].shape, dtype=torch.int32)
    labels[4:12, 5:25], labels[20:35, 10:18], labels[40:50, 35:50] = 2**24, 2**24 + 1, 2**31 - 1
    labels[:3] = -1
    given = item | {"instances": labels, "ignored": labels < 0}
    for change, moved in ((Flipd(BOTH, 0), labels.flip(0)), (Rotate90d(BOTH), labels.rot90(1))):
        made = MonaiTransform(change)(given, generator(0))
        assert torch.equal(made["instances"], moved)
        assert torch.equal(made["ignored"], moved < 0)
        assert type(made["instances"]) is torch.Tensor
    turned: Any = {"range_x": 0.5, "prob": 1.0, "padding_mode": "zeros"}
    nearest = MonaiTransform(RandRotated(BOTH, mode=["bilinear", "nearest"], **turned))
    assert set(nearest(given, generator(0))["instances"].unique().tolist()) <= {
        *labels.unique().tolist()
    }
    with pytest.raises(ValueError, match="needs mode='nearest' for 'masks'"):
        MonaiTransform(RandRotated(BOTH, **turned))(given, generator(0))


@pytest.mark.parametrize(
    "change",
    [
        RandFlipd("image", 1.0, spatial_axis=1),
        RandFlipd("masks", 1.0, spatial_axis=1),
        RandRotate90d("image", 1.0),
        CenterSpatialCropd("image", (40, 40)),
        RandSpatialCropd(["image"], (40, 40), random_size=False),
        Compose([RandFlipd("image", 0.5, 1), RandFlipd("masks", 0.5, 1)]),
        OneOf([RandGaussianNoised("image"), RandAffined("image", 1.0)]),
        # Those that MONAI's affine says nothing of.
        Rand2DElasticd(["image"], (20, 20), (20, 25), prob=1.0),
        RandGridDistortiond(["image"], prob=1.0),
        RandZoomd(["image"]),
        RandSmoothDeformd("image", (64, 64), (8, 8), prob=1.0),
    ],
)
def test_a_transform_of_monai_moves_image_and_masks_together(change: Any) -> None:
    """With one key only, or each by its own chance, the masks would be of another image."""
    with pytest.raises(ValueError, match="only: it needs both keys"):
        MonaiTransform(change)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (RandFlipd(["label"], 1.0, allow_missing_keys=True), r"RandFlipd has the keys \['label'\]"),
        (RandFlipd(["image", "label"]), "has the keys"),
        (RandGaussianNoised(BOTH, 1.0), "changes gray levels, also those of 'masks'"),
        (EnsureChannelFirstd(["image"], channel_dim="no_channel"), "they must stay"),
        (DeleteItemsd(["masks"]), r"masks \(\): they must stay"),
        (Transposed(["image"], (0, 2, 1)), "needs both keys"),
        (Lambdad(["image"], lambda image: image[:1]), "they must stay"),
        (Lambdad(["image"], lambda image: image / 0), "with NaN or infinity"),
    ],
)
def test_what_is_no_item_any_more_is_refused(item: Any, change: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        MonaiTransform(change)(item, generator(0))


def test_a_lower_resolution_moves_nothing(item: Any) -> None:
    """Although it is among MONAI's spatial transforms."""
    lower = RandSimulateLowResolutiond(
        ["image"], prob=1.0, upsample_mode="bilinear", zoom_range=(0.3, 0.31)
    )
    changed = MonaiTransform(lower)(item, generator(0))
    assert torch.equal(changed["masks"], item["masks"])
    assert not torch.equal(changed["image"], item["image"])


def test_a_transform_of_monai_that_returns_a_list_of_images(item: Any) -> None:
    """One is used; of several, most would be lost."""
    crop = partial(RandSpatialCropSamplesd, BOTH, (40, 30), random_size=False)
    changed = MonaiTransform(crop(num_samples=1))(item, generator(0))
    assert changed["image"].shape == (3, 40, 30)
    with pytest.raises(ValueError, match="has returned 2 images: num_samples=1"):
        MonaiTransform(crop(num_samples=2))(item, generator(0))


def test_an_object_that_leaves_the_image_is_removed(item: Any) -> None:
    """The others keep their keys; a box is around the new mask."""

    def upper_half(given: Any) -> Any:
        return {name: value[:, :20] for name, value in given.items()}

    boxed = item | {"boxes": torch.zeros(len(item["masks"]), 4)}
    change = MonaiTransform(upper_half)
    half = change(boxed, generator(0))
    left = item["masks"][:, :20].flatten(1).any(1)
    assert 0 < len(half["masks"]) < len(item["masks"])
    assert half["keys"].tolist() == item["keys"][left].tolist()
    for mask, box in zip(half["masks"], half["boxes"], strict=True):
        y, x = torch.where(mask)
        assert box.tolist() == [x.min(), y.min(), x.max(), y.max()]
