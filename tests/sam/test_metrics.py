"""Scores of masks, compared with MONAI and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_iou
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from ddp_magic.sam.evaluation.metrics import dice_score, iou_score, pixel_accuracy

Pair = tuple[torch.Tensor, torch.Tensor]


def _pairs() -> Pair:
    """Return random masks and all degenerate cases, (M, H, W) each."""
    rng = torch.Generator().manual_seed(0)
    density = torch.rand(2, 20, 1, 1, generator=rng)
    pred, true = torch.rand(2, 20, 9, 7, generator=rng) < density
    full, empty = torch.ones(1, 9, 7, dtype=torch.bool), torch.zeros(1, 9, 7, dtype=torch.bool)
    one = empty.clone()
    one[0, 3, 3] = True
    return (
        torch.cat([pred, full, full, empty, empty, one, one, empty]),
        torch.cat([true, full, empty, full, empty, one, empty, one]),
    )


def test_dice_and_iou_agree_with_monai() -> None:
    """The score of each object equals that of MONAI with ignore_empty=False."""
    pred, true = _pairs()
    p, t = pred[:, None].float(), true[:, None].float()
    dice = compute_dice(p, t, include_background=True, ignore_empty=False)[:, 0]
    iou = compute_iou(p, t, include_background=True, ignore_empty=False)[:, 0]
    torch.testing.assert_close(dice_score(pred, true), dice.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(iou_score(pred, true), iou.double(), rtol=0, atol=1e-6)


def test_all_scores_agree_with_scikit_learn() -> None:
    """The score of each object equals that of scikit-learn with zero_division=1."""
    pred, true = _pairs()
    for p, t in zip(pred, true, strict=True):
        a, b = t.numpy().ravel(), p.numpy().ravel()
        assert dice_score(p, t).item() == pytest.approx(f1_score(a, b, zero_division=1), abs=1e-15)
        iou = jaccard_score(a, b, zero_division=1)
        assert iou_score(p, t).item() == pytest.approx(iou, abs=1e-15)
        assert pixel_accuracy(p, t).item() == pytest.approx(accuracy_score(a, b), abs=1e-15)


def test_dice_follows_from_iou() -> None:
    """dice = 2 iou / (1 + iou) holds for all masks, also if both are empty."""
    pred, true = _pairs()
    iou = iou_score(pred, true)
    torch.testing.assert_close(dice_score(pred, true), 2 * iou / (1 + iou), rtol=0, atol=1e-15)


@pytest.mark.parametrize("score", [dice_score, iou_score, pixel_accuracy])
def test_empty_against_empty_is_perfect(score: object) -> None:
    """An empty prediction of an empty mask scores 1, also in images without pixels."""
    assert callable(score)
    for size in ((4, 4), (0, 0)):
        empty = torch.zeros(2, *size, dtype=torch.bool)
        assert score(empty, empty).tolist() == [1.0, 1.0]


def test_logits_are_thresholded_at_zero() -> None:
    """Logits of +8 and -8 are full and empty masks."""
    full = torch.ones(1, 8, 8, dtype=torch.bool)
    assert dice_score(torch.full((1, 8, 8), 8.0), full).item() == 1.0
    assert dice_score(torch.full((1, 8, 8), -8.0), full).item() == 0.0
    half = torch.full((1, 8, 8), -3.0)
    half[:, :4] = 3.0
    assert iou_score(half, full).item() == 0.5  # with .bool(), every nonzero logit would be inside
    assert pixel_accuracy(half, full).item() == 0.5


def test_shapes_must_agree() -> None:
    """(B, 1, H, W) with (B, H, W) is an error; broadcasting would give a Dice above 1."""
    mask = torch.ones(3, 4, 4, dtype=torch.bool)
    for score in (dice_score, iou_score, pixel_accuracy):
        with pytest.raises(ValueError, match=r"\(3, 1, 4, 4\).*\(3, 4, 4\)"):
            score(mask[:, None], mask)


def test_scores_are_per_object() -> None:
    """A small object that is missed counts as much as a large one that is found."""
    pred, true = torch.zeros(2, 16, 16, dtype=torch.bool), torch.zeros(2, 16, 16, dtype=torch.bool)
    pred[0] = true[0] = True
    true[1, 0, 0] = True
    assert dice_score(pred, true).tolist() == [1.0, 0.0]
    assert dice_score(pred[:, None], true[:, None]).shape == (2, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int16])
def test_large_masks_do_not_overflow(dtype: torch.dtype) -> None:
    """A full mask of 512 x 512 scores 1 in each dtype; float16 overflows above 65504."""
    full = torch.ones(1, 512, 512, dtype=dtype)
    assert dice_score(full, full.bool()).item() == 1.0
    assert iou_score(full, full.bool()).item() == 1.0


def test_any_memory_layout_and_numpy() -> None:
    """Transposed tensors, and NumPy arrays with 0/255 or uint16 labels, are supported."""
    pred, true = _pairs()
    turned = dice_score(pred.transpose(1, 2), true.transpose(1, 2))
    assert torch.equal(turned, dice_score(pred, true))
    arrays = (pred.numpy().astype(np.uint8) * 255, true.numpy().astype(np.uint16) * 7)
    assert torch.equal(dice_score(*arrays), dice_score(pred, true))


@pytest.mark.parametrize("score", [dice_score, iou_score, pixel_accuracy])
def test_probabilities_are_refused(score: Any) -> None:
    """Each positive one would count as inside."""
    truth = torch.zeros(2, 8, 8, dtype=torch.bool)
    half = torch.rand(2, 8, 8)
    for pred in (half, half.double().numpy(), half.half(), torch.full((2, 8, 8), 0.3)):
        with pytest.raises(ValueError, match=r"pred has values from .*: pass pred > 0\.5"):
            score(pred, truth)
    with pytest.raises(ValueError, match=r"target has values .*: pass target > 0\.5"):
        score(truth, half)
    with pytest.raises(ValueError, match="pred contains NaN"):
        score(half * torch.nan, truth)
    assert score(truth.float(), truth).tolist() == [1.0, 1.0]
    assert score(half - 1.5, truth).tolist() == [1.0, 1.0]  # logits
