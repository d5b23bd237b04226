"""Segmentation metrics: one score per object, and scores of label maps of whole images.

For the scores per object, boolean and integer tensors are masks, in which every nonzero pixel is
inside. Floating-point tensors are logits, thresholded at 0 (probability 0.5), or masks of zeros and
ones. Probabilities are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

THRESHOLDS = np.arange(50, 100, 5) / 100  # of IoU, from .5 to .95


def _pixel_counts(
    pred: Tensor | ArrayLike, target: Tensor | ArrayLike
) -> tuple[Tensor, Tensor, Tensor]:
    """Count true positive, wrong, and all pixels per object.

    Counts are int64: float16 overflows at 256 x 256 pixels, and float32 rounds above 2^24.
    """
    pred, target = torch.as_tensor(pred), torch.as_tensor(target)
    # Broadcasting (B, 1, H, W) with (B, H, W) would score nonsense.
    if pred.shape != target.shape or pred.ndim < 2:
        raise ValueError(
            f"pred has shape {tuple(pred.shape)}, but target has shape {tuple(target.shape)}: "
            "they must be equal, (..., H, W)"
        )
    inside, truth = _inside(pred, "pred"), _inside(target, "target")  # (..., H, W)
    tp, wrong = _count(inside & truth), _count(inside ^ truth)  # (...)
    return tp, wrong, torch.full_like(tp, pred.shape[-2] * pred.shape[-1])


def _inside(masks: Tensor, name: str) -> Tensor:
    """Return which pixels are inside masks, bool.

    Raises:
        ValueError: They are probabilities, or NaN.
    """
    if not masks.is_floating_point():
        return masks != 0
    if masks.isnan().any():
        raise ValueError(f"{name} contains NaN")
    inside = masks > 0
    low, high = (masks.min().item(), masks.max().item()) if masks.numel() else (-1.0, 1.0)
    if low >= 0 and high <= 1 and not torch.equal(inside.to(masks), masks):
        raise ValueError(
            f"{name} has values from {low:.3g} to {high:.3g}, which are probabilities: pass "
            f"{name} > 0.5, or logits, which are thresholded at 0"
        )
    return inside


def _count(masks: Tensor) -> Tensor:
    """Count the pixels of masks (..., H, W), int64."""
    if masks.is_cuda or not masks.numel():
        return masks.sum(dim=(-2, -1))
    # On a CPU, summing booleans takes torch 50 times as long as NumPy.
    flat = masks.reshape(-1, masks.shape[-2] * masks.shape[-1]).numpy()
    return torch.tensor([np.count_nonzero(each) for each in flat]).view(masks.shape[:-2])


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
        ValueError: The shapes are different, or `pred` or `target` are probabilities.

    Source:
        L. R. Dice, "Measures of the amount of ecologic association between species", 1945.
    """
    tp, wrong, _ = _pixel_counts(pred, target)
    return _ratio(2 * tp, 2 * tp + wrong)


def iou_score(pred: Tensor | ArrayLike, target: Tensor | ArrayLike) -> Tensor:
    """Compute the intersection over union (Jaccard index) of each object: TP / (TP + FP + FN).

    The rest is as in `dice_score`.

    Source:
        P. Jaccard, "The distribution of the flora in the alpine zone", 1912.
    """
    tp, wrong, _ = _pixel_counts(pred, target)
    return _ratio(tp, tp + wrong)


def pixel_accuracy(pred: Tensor | ArrayLike, target: Tensor | ArrayLike) -> Tensor:
    """Compute the fraction of pixels that are classified correctly: (TP + TN) / all.

    The rest is as in `dice_score`; 1 for masks without pixels.
    """
    _, wrong, every = _pixel_counts(pred, target)
    return _ratio(every - wrong, every)


class Matches(NamedTuple):
    """The objects of a predicted and a true label map."""

    ious: NDArray[np.float64]  # of the matched pairs, all at least .5
    predicted: int  # number of objects
    true: int


def match_objects(pred: ArrayLike, true: ArrayLike, ignore: ArrayLike | None = None) -> Matches:
    """Match the objects of two label maps (H, W) whose IoU is at least .5, each at most once.

    The matches for a higher threshold are those of these matches that reach it: an object has only
    one partner with an IoU above .5, because the objects of a map do not overlap.

    Args:
        pred: labels, 0 for background.
        true: the same for the true objects.
        ignore: pixels that do not count, (H, W) bool. A predicted object with more than half of its
            area there does not count at all.

    Raises:
        ValueError: The shapes are different, or a map is not a label map.
    """
    found, own = _labels(pred, "pred"), _labels(true, "true")
    void = np.zeros(own.shape, bool) if ignore is None else np.asarray(ignore)
    if (void != void.astype(bool)).any():
        raise ValueError("ignore must be bool, True where a pixel does not count: not labels")
    void = void.astype(bool)
    if not found.shape == own.shape == void.shape:
        raise ValueError(
            f"pred has shape {found.shape}, true {own.shape}"
            + (f" and ignore {void.shape}" if ignore is not None else "")
            + ": they must be equal"
        )
    found, own = found.ravel(), np.where(void, 0, own).ravel()
    areas = np.bincount(found)
    hidden = 2 * np.bincount(found, void.ravel(), len(areas)) > areas
    found = np.where(hidden[found] | void.ravel(), 0, found)
    areas, own_areas = np.bincount(found), np.bincount(own)
    both = (found > 0) & (own > 0)
    pairs, shared = np.unique(
        found[both] * np.int64(len(own_areas)) + own[both], return_counts=True
    )
    p, t = np.divmod(pairs, len(own_areas))
    ious = shared / (areas[p] + own_areas[t] - shared)
    # Exactly .5 is ambiguous: an object that is split into halves has two partners. Each half has
    # only this one, so that the first pair found is as good as any other.
    order = np.argsort(-ious, kind="stable")[: np.count_nonzero(ious >= 0.5)]
    once_p, once_t = (np.unique(x[order], return_index=True)[1] for x in (p, t))
    return Matches(
        ious[order][np.intersect1d(once_p, once_t)],
        int(np.count_nonzero(areas[1:])),
        int(np.count_nonzero(own_areas[1:])),
    )


def _labels(given: ArrayLike, name: str) -> NDArray[np.int64]:
    """Return a label map whose labels are at most its number of pixels.

    Raises:
        ValueError: It is not a label map.
    """
    labels = np.asarray(given)
    if labels.ndim != 2 or labels.dtype.kind not in "bui" or labels.min(initial=0) < 0:
        what = f"{labels.dtype}, shape {labels.shape}, minimum {labels.min(initial=0)}"
        raise ValueError(f"{name} must be a label map (H, W) of integers from 0, but is {what}")
    if labels.max(initial=0) <= labels.size:  # as almost always: counting instead of sorting
        return labels.astype(np.int64)
    known, numbers = np.unique(labels, return_inverse=True)
    return numbers.reshape(labels.shape) + int(known[0] != 0)  # without background, from 1


def instance_scores(
    pred: Sequence[ArrayLike] | NDArray[Any] | Tensor,
    true: Sequence[ArrayLike] | NDArray[Any] | Tensor,
    ignore: Sequence[ArrayLike] | NDArray[Any] | Tensor | None = None,
) -> dict[str, float]:
    """Compare label maps of whole images, in which 0 is background and each label is an object.

    A predicted and a true object match if their IoU is at least a threshold; each object has at
    most one match. The objects of all images are counted together.

    Args:
        pred: a label map (H, W) of nonnegative integers, or a list of label maps.
        true: the same for the true objects.
        ignore: pixels that do not count, (H, W) bool, or a list of such masks; see `match_objects`.

    Returns:
        `ap_50`, `ap_75` and `ap`: average precision as microscopy defines it (StarDist, Cellpose,
        micro-sam), TP / (TP + FP + FN), at an IoU of .5 and .75, and its mean over .5, .55, ...,
        .95. It is not the area under a curve of precision and recall, as in COCO. `pq`: panoptic
        quality, `sq` * `rq`: the mean IoU of the matches at .5, times TP / (TP + FP / 2 + FN / 2).
        All are from 0 to 1, and 1 if there is no object in any map. `predicted` and `true`: the
        numbers of objects.

    Raises:
        ValueError: The shapes or the numbers of maps are different, or a map is not a label map.

    Source:
        J. C. Caicedo et al., "Nucleus segmentation across imaging experiments", Nature Methods
        2019; Kirillov et al., "Panoptic segmentation", CVPR 2019.
    """
    preds, trues = _maps(pred), _maps(true)
    voids = [None] * len(trues) if ignore is None else _maps(ignore)
    if not len(preds) == len(trues) == len(voids):
        raise ValueError(f"{len(preds)} predicted maps, but {len(trues)} true maps")
    return pooled_scores([match_objects(*each) for each in zip(preds, trues, voids, strict=True)])


def _maps(given: Any) -> list[Any]:  # noqa: ANN401 -- an array, a tensor, or a list of them
    """Return a list of label maps for a list, a stack (n, H, W), or a single map."""
    return list(given) if len(given) and np.ndim(given[0]) == 2 else [given]


def pooled_scores(matches: Sequence[Matches]) -> dict[str, float]:
    """Return the scores of `instance_scores` for the objects of several images."""
    ious = np.concatenate([np.zeros(0), *(each.ious for each in matches)])
    predicted, true = sum(each.predicted for each in matches), sum(each.true for each in matches)
    if not predicted + true:
        scores = dict.fromkeys(("ap_50", "ap_75", "ap", "pq", "sq", "rq"), 1.0)
    else:
        tp = (ious >= THRESHOLDS[:, None]).sum(1)  # (thresholds,)
        precision = tp / (predicted + true - tp)
        sq, rq = float(ious.mean()) if len(ious) else 0.0, 2 * len(ious) / (predicted + true)
        scores = {"ap_50": float(precision[0]), "ap_75": float(precision[5])}
        scores |= {"ap": float(precision.mean()), "pq": sq * rq, "sq": sq, "rq": rq}
    return scores | {"predicted": predicted, "true": true}
