"""Prompts: those of the data set, simulated ones, and the schemes of other tools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DiceFocalLoss

from ddp_magic.prelude import SamDataset, cells, tiny_sam, train
from ddp_magic.sam.data.batches import Geometry, collate, prepare
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.prompts import box_around, first_prompts, kinds_of, rough_mask, to_square


def _two() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    images = np.arange(40 * 60, dtype=np.uint8).reshape(1, 40, 60)
    masks = np.zeros((1, 40, 60), np.int32)
    masks[0, 5:15, 5:25], masks[0, 20:38, 30:50] = 7, 9
    return images, masks


def test_negative_clicks_belong_to_the_click_before() -> None:
    """A click with label 0 belongs to the object of the last click with label 1 in the image."""
    images, masks = _two()
    rows = [(0, 6, 6, 1), (0, 18, 10, 0), (0, 25, 35, 1), (0, 6, 6, 0), (0, 8, 8, 1)]
    item = SamDataset(images, masks, rows)[0]
    assert item["counts"].tolist() == [3, 2]
    assert item["points"].tolist() == [[6, 6], [10, 18], [8, 8], [35, 25], [6, 6]]
    assert item["labels"].tolist() == [1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 6, 6, 0), "label 0 needs a click with label 1 before it"),
        ((0, 18, 10, 2), "invalid label 2"),
    ],
)
def test_bad_labels_are_refused(row: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamDataset(*_two(), [row])


def test_a_negative_click_on_its_object_is_refused_and_shown() -> None:
    with pytest.raises(ValueError, match=r"(?s)row 1.*label 0 must be off its object.*#X#"):
        SamDataset(*_two(), [(0, 6, 6, 1), (0, 8, 8, 0)])


def test_the_error_shows_the_mask_and_the_click() -> None:
    """A click with swapped axes inside the image is an error if it misses the object."""
    with pytest.raises(ValueError, match="are the axes swapped") as caught:
        SamDataset(*_two(), [(0, 22, 12)])
    sketch = str(caught.value).splitlines()[1:]
    assert len(sketch) == 12
    assert sum(line.count("X") for line in sketch) == 1
    assert sum(line.count("#") for line in sketch) > 50


def test_a_box_prompts_the_object_inside() -> None:
    """A box and a click on the same object are one prompt; a box around none is an error."""
    images, masks = _two()
    data = SamDataset(images, masks, [(0, 25, 35)], boxes=[(0, 4, 4, 15, 26), (0, 19, 30, 37, 50)])
    item = data[0]
    assert item["counts"].tolist() == [1, 0]
    assert item["boxes"].tolist() == [[30, 19, 50, 37], [4, 4, 26, 15]]
    assert item["masks"][1, 10, 10]
    with pytest.raises(ValueError, match=r"is not around any object tightly: the nearest is in \("):
        SamDataset(images, masks, boxes=[(0, 0, 0, 39, 45)])
    for box, present in [((0, 0, 40, 10, 59), 1), ((0, 15, 26, 4, 4), 1), ((0, 4, 4, 15, 26), 0)]:
        with pytest.raises(ValueError, match=r"boxes row 0: .* is not around any object"):
            SamDataset(images, masks * present, boxes=[box])


def test_stacks_of_masks_may_overlap() -> None:
    """A click prompts the smallest mask under it, and a box the mask that fits it."""
    stack = np.zeros((1, 2, 20, 20), bool)
    stack[0, 0, 2:18, 2:18] = True
    stack[0, 1, 8:12, 8:12] = True
    image = np.full((1, 20, 20), 5, np.uint8)
    data = SamDataset(image, stack, [(0, 9, 9), (0, 3, 3)], [(0, 2, 2, 17, 17)])
    item = data[0]
    assert item["masks"].sum((1, 2)).tolist() == [16, 256]
    assert item["boxes"][1].tolist() == [2, 2, 17, 17]
    assert SamDataset(image, stack)[0]["masks"].shape == (2, 20, 20)


def _batch() -> dict[str, Any]:
    data = SamDataset(*_two())
    return prepare(collate([data[0]]), Geometry(64))


def test_without_prompts_objects_are_clicked_on() -> None:
    """The click is in the middle in evaluation, and depends on the key in training."""
    batch = _batch()
    assert batch["labels"].shape == (2, 0)
    given = first_prompts(batch, kinds_of("points"), 32, 64, random=False)
    scale = 64 / 60
    middle = torch.tensor([[14.5, 9.5], [39.5, 28.5]]) * scale
    assert (given.points[:, 0] - middle).abs().max() < 4
    places = set()
    for key in range(20):
        batch["keys"] = torch.tensor([key, key + 1000])
        x, y = first_prompts(batch, kinds_of("points"), 32, 64, random=True).points[0, 0].tolist()
        assert 5 * scale - 1 <= x <= 25 * scale
        assert 5 * scale - 1 <= y <= 15 * scale
        places.add((x, y))
    assert len(places) > 15


def test_boxes_fit_in_evaluation_and_are_rough_in_training() -> None:
    """In evaluation, boxes are tight; in training, they are off by about a tenth of a side."""
    target = _batch()["target"].repeat(500, 1, 1, 1)
    exact = box_around(target, None, 64)
    assert (exact[0] - torch.tensor([5, 5, 26, 15.5])).abs().max() < 1
    rough = box_around(target, torch.arange(1000), 64)
    off = (rough - exact)[::2, 0] / (exact[0, 2] - exact[0, 0] + 1)
    assert off.std() == pytest.approx(0.1, rel=0.15)
    assert off.mean().abs() < 0.02


def test_boxes_of_another_square_are_scaled() -> None:
    """A pixel of a coarser square is at the center of the pixels that it covers."""
    assert to_square(torch.tensor([0, 255]), 256, 1024).tolist() == [1.5, 1021.5]
    assert to_square(torch.tensor([3.0]), 64, 64).tolist() == [3]


def test_rough_masks_are_near_the_true_ones() -> None:
    """Rough masks vary, are not empty, and overlap the true masks."""
    target = _batch()["target"].repeat(50, 1, 1, 1)
    rough = rough_mask(target, 32, torch.arange(100))
    true = rough_mask(target, 32, None) > 0
    inside = rough > 0
    assert set(rough.unique().tolist()) == {-8.0, 8.0}
    assert ((inside & true).sum((1, 2, 3)) > 0.3 * inside.sum((1, 2, 3))).all()
    assert inside.sum((1, 2, 3)).unique().numel() > 10


def test_shares_of_kinds() -> None:
    """Each kind has the requested fraction, and unknown kinds are errors."""
    batch = _batch()
    many = {k: v for k, v in batch.items() if k not in {"target", "inside"}}
    n = 2000
    for key in ("points", "labels", "boxes"):
        many[key] = batch[key][:1].expand(n, *batch[key].shape[1:])
    many |= {"keys": torch.arange(n), "target": batch["target"][:1].expand(n, 1, 64, 64)}
    many["inside"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).expand(n, 1, 64, 64)
    shares = kinds_of({"points": 2, "boxes": 1, "masks": 1})
    given = first_prompts(many, shares, 16, 64, random=True)
    clicked = (given.labels == 1).any(1)
    boxed, masked = ~given.boxes.isnan().any(1), ~given.masks[:, 0, 0, 0].isnan()
    assert (clicked.int() + boxed.int() + masked.int() == 1).all()
    for found, share in ((clicked, 0.5), (boxed, 0.25), (masked, 0.25)):
        assert found.double().mean().item() == pytest.approx(share, abs=0.05)
    for wrong in ("clicks", {}, {"points": 0.0}, {"points": 1, "lines": 1}):
        with pytest.raises(ValueError, match="invalid prompts"):
            kinds_of(wrong)


FOCAL = DiceFocalLoss(sigmoid=True, lambda_focal=20, reduction="none")
TOOLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of PromptedSam, and of train
    "Transformers notebook, MedSAM: a rough box, or a click": (
        {"prompts": {"boxes": 1, "points": 1}, "rounds": 1},
        {},
    ),
    "lightning-sam: boxes, focal loss": ({"prompts": "boxes", "rounds": 1}, {"loss": FOCAL}),
    "SAMed: no prompt": ({"prompts": "none", "rounds": 1}, {}),
    "micro-sam: click or box, then 7 corrections": (
        {"prompts": {"points": 1, "boxes": 1}, "rounds": 8},
        {},
    ),
    "SAM 2: mask, click or box, then 6 corrections": (
        {"prompts": {"masks": 2, "points": 1, "boxes": 1}, "rounds": 7},
        {"loss": FOCAL},
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_prompts_of_other_tools(tool: str) -> None:
    """The training scheme of each tool is a few arguments, and runs."""
    sets = SamDataset(*cells(n=4)[:2]), SamDataset(*cells(n=2, seed=1))
    prompts, options = TOOLS[tool]
    (row,) = train(PromptedSam(tiny_sam(), **prompts), *sets, epochs=1, batch_size=2, **options)
    assert np.isfinite(row["train_loss"])
    assert 0 <= row["dice_5"] <= 1


def test_a_single_click_gets_three_masks_and_more_gets_one() -> None:
    """A single click is ambiguous; two clicks, a box or a mask are not."""
    sam = tiny_sam().eval()
    data = SamDataset(*_two(), [(0, 6, 6), (0, 25, 35)])
    batch = prepare(collate([data[0]]), Geometry(64))
    with torch.no_grad():
        one, two = PromptedSam(sam, rounds=2)(batch)
        assert one[0].shape == (2, 3, 32, 32)
        assert two[0].shape == (2, 1, 32, 32)
        assert PromptedSam(sam, rounds=1, multimask=False)(batch)[0][0].shape[1] == 1
        ((logits, iou),) = PromptedSam(sam, "boxes", 1)(batch)
    assert logits.shape[1] == iou.shape[1] == 1
