"""Segmentation metrics: one score per object, from integer pixel counts.

Boolean and integer tensors are masks, in which every nonzero pixel is inside. Floating-point
tensors are logits, thresholded at 0 (probability 0.5). A floating-point mask of zeros and ones
gives the right result, but probabilities do not: every positive one counts as inside.
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor


def _pixel_counts(
    pred: Tensor | ArrayLike, target: Tensor | ArrayLike
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count true positive, false positive, false negative and true negative pixels per object.

    Counts are int64: float16 overflows at 256 x 256 pixels, and float32 rounds above 2^24.
    """
    pred, target = torch.as_tensor(pred), torch.as_tensor(target)
    if pred.shape != target.shape:  # broadcasting (B, 1, H, W) with (B, H, W) would score nonsense
        raise ValueError(
            f"pred has shape {tuple(pred.shape)}, but target has shape {tuple(target.shape)}: "
            "they must be equal"
        )
    inside = pred > 0 if pred.is_floating_point() else pred != 0  # (..., H, W)
    truth = target > 0 if target.is_floating_point() else target != 0  # (..., H, W)
    tp = (inside & truth).sum(dim=(-2, -1))  # (...)
    fp = inside.sum(dim=(-2, -1)) - tp
    fn = truth.sum(dim=(-2, -1)) - tp
    tn = pred.shape[-2] * pred.shape[-1] - tp - fp - fn
    return tp, fp, fn, tn


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Divide in float64; 0 / 0 is 1."""
    return torch.where(whole == 0, 1.0, part.double() / whole.clamp(min=1))


def dice_score(pred: Tensor | ArrayLike, target: Tensor | ArrayLike) -> Tensor:
    """Compute the Dice coefficient of each object: 2 TP / (2 TP + FP + FN).

    Args:
        pred: masks or logits, (..., H, W).
        target: masks, of the same shape as `pred`.

    Returns:
        Scores from 0 to 1, float64, (...). 1 where both masks are empty.

    Raises:
        ValueError: The shapes are different.

    Source:
        L. R. Dice, "Measures of the amount of ecologic association between species", 1945.
    """
    tp, fp, fn, _ = _pixel_counts(pred, target)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def iou_score(pred: Tensor | ArrayLike, target: Tensor | ArrayLike) -> Tensor:
    """Compute the intersection over union (Jaccard index) of each object: TP / (TP + FP + FN).

    Args:
        pred: masks or logits, (..., H, W).
        target: masks, of the same shape as `pred`.

    Returns:
        Scores from 0 to 1, float64, (...). 1 where both masks are empty.

    Raises:
        ValueError: The shapes are different.

    Source:
        P. Jaccard, "The distribution of the flora in the alpine zone", 1912.
    """
    tp, fp, fn, _ = _pixel_counts(pred, target)
    return _ratio(tp, tp + fp + fn)


def pixel_accuracy(pred: Tensor | ArrayLike, target: Tensor | ArrayLike) -> Tensor:
    """Compute the fraction of pixels that are classified correctly: (TP + TN) / all.

    Args:
        pred: masks or logits, (..., H, W).
        target: masks, of the same shape as `pred`.

    Returns:
        Scores from 0 to 1, float64, (...). 1 for masks without pixels.

    Raises:
        ValueError: The shapes are different.
    """
    tp, fp, fn, tn = _pixel_counts(pred, target)
    return _ratio(tp + tn, tp + fp + fn + tn)
