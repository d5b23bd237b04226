"""How good is a mask? One score per object, from integer pixel counts.

Boolean and integer tensors are read as masks (anything but 0 is inside), floating ones as logits,
thresholded at 0 (probability one half). So a float mask of 0s and 1s is read rightly too, but
probabilities are not: every positive one counts as inside.
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor


def _pixel_counts(
    pred: Tensor | ArrayLike, target: Tensor | ArrayLike
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count true positive, false positive, false negative and true negative pixels per object.

    Counts are int64: float16 sums overflow at 256 x 256 pixels, and float32 ones round above 2^24.
    """
    pred, target = torch.as_tensor(pred), torch.as_tensor(target)
    if pred.shape != target.shape:  # broadcasting (B, 1, H, W) with (B, H, W) would score nonsense
        raise ValueError(
            f"prediction {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape"
        )
    inside = pred > 0 if pred.is_floating_point() else pred != 0  # (..., H, W)
    truth = target > 0 if target.is_floating_point() else target != 0  # (..., H, W)
    tp = (inside & truth).sum(dim=(-2, -1))  # (...)
    fp = inside.sum(dim=(-2, -1)) - tp
    fn = truth.sum(dim=(-2, -1)) - tp
    tn = pred.shape[-2] * pred.shape[-1] - tp - fp - fn
    return tp, fp, fn, tn


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Divide in float64; nothing out of nothing is a perfect score."""
    return torch.where(whole == 0, 1.0, part.double() / whole.clamp(min=1))


def dice_score(pred: Tensor | ArrayLike, target: Tensor | ArrayLike) -> Tensor:
    """Dice coefficient of each object: 2 TP / (2 TP + FP + FN).

    Args:
        pred: masks or logits, (..., H, W).
        target: masks, (..., H, W), exactly as `pred`.

    Returns:
        Scores from 0 to 1, float64, (...). 1 where both masks are empty.

    Raises:
        ValueError: The shapes differ.

    Source:
        L. R. Dice, "Measures of the amount of ecologic association between species", 1945.
    """
    tp, fp, fn, _ = _pixel_counts(pred, target)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def iou_score(pred: Tensor | ArrayLike, target: Tensor | ArrayLike) -> Tensor:
    """Intersection over union (Jaccard index) of each object: TP / (TP + FP + FN).

    Args:
        pred: masks or logits, (..., H, W).
        target: masks, (..., H, W), exactly as `pred`.

    Returns:
        Scores from 0 to 1, float64, (...). 1 where both masks are empty.

    Raises:
        ValueError: The shapes differ.

    Source:
        P. Jaccard, "The distribution of the flora in the alpine zone", 1912.
    """
    tp, fp, fn, _ = _pixel_counts(pred, target)
    return _ratio(tp, tp + fp + fn)


def pixel_accuracy(pred: Tensor | ArrayLike, target: Tensor | ArrayLike) -> Tensor:
    """Share of the pixels of each object's picture that are labeled rightly: (TP + TN) / all.

    Args:
        pred: masks or logits, (..., H, W).
        target: masks, (..., H, W), exactly as `pred`.

    Returns:
        Scores from 0 to 1, float64, (...). 1 for pictures without pixels.

    Raises:
        ValueError: The shapes differ.
    """
    tp, fp, fn, tn = _pixel_counts(pred, target)
    return _ratio(tp + tn, tp + fp + fn + tn)
