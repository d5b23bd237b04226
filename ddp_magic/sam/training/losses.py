"""Training losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddp_magic.sam.arrays.items import Item
from ddp_magic.sam.data.access import name_of_image
from ddp_magic.sam.evaluation.metrics import iou_score
from ddp_magic.sam.models.instances import instance_losses
from ddp_magic.sam.process_group import all_gather

Loss = Callable[[Tensor, Tensor], Tensor]


def dice_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Compute Dice loss + binary cross-entropy of masks, (n,); logits and target are (n, 1, T, T).

    Other losses of this kind are those of MONAI and torch with `reduction="none"`, such as
    `DiceFocalLoss(sigmoid=True, lambda_focal=20, reduction="none")`, the loss of SAM.
    """
    dice: Tensor = DiceLoss(sigmoid=True, reduction="none")(logits, target)
    pixels = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return dice.flatten(1).mean(1) + pixels.flatten(1).mean(1)


def object_losses(logits: Tensor, iou: Tensor, target: Tensor, loss: Loss = dice_bce) -> Tensor:
    """Compute the loss of each object: the loss of its best mask, and of the predicted IoU.

    If there are several masks per object, only the one with the lowest loss is trained, because a
    click can mean a part or the whole. The predicted IoU of all masks is trained.

    Args:
        logits: (M, C, T, T).
        iou: predicted IoU, (M, C).
        target: true masks, (M, 1, T, T), from 0 to 1.
        loss: a function of logits (n, 1, T, T) and targets (n, 1, T, T) that returns one loss per
            mask, (n,), or per pixel, (n, ...).

    Returns:
        One loss per object, (M,).

    Raises:
        TypeError: `loss` returns nothing that can be trained.
        ValueError: `loss` returns a single number.

    Source:
        Kirillov et al., "Segment Anything", ICCV 2023, appendix A.
    """
    if not len(logits):  # on a rank without objects: zero gradients
        return logits.float().flatten(1).sum(1) + iou.sum(1)
    logits = logits.float()  # in float16, sums over a 256 x 256 mask overflow
    true = target.expand_as(logits)
    of_masks: Any = loss(logits.flatten(0, 1)[:, None], true.flatten(0, 1)[:, None])
    if not isinstance(of_masks, Tensor) or (logits.requires_grad and not of_masks.requires_grad):
        raise TypeError("loss must return a tensor with a gradient, made from the logits by torch")
    if not of_masks.ndim or len(of_masks) != iou.numel():
        raise ValueError(
            f"loss returned shape {tuple(of_masks.shape)} for {iou.numel()} masks: it must return "
            "one number per mask or pixel, for example with reduction='none'"
        )
    mask_loss = of_masks.reshape(*iou.shape, -1).mean(2)  # (M, C)
    truth = iou_score(logits.detach() > 0, true > 0.5).to(iou)  # (M, C)
    best: Tensor = mask_loss.min(1).values + (iou - truth).square().mean(1)
    return best


def step_losses(model: nn.Module, batch: dict[str, Any], loss: Loss = dice_bce) -> Tensor:
    """Run `model`, a `PromptedSam` or DDP around one, on a prepared batch, and compute its loss.

    Args:
        model: the model.
        batch: a batch from `prepare`.
        loss: the loss of masks, see `object_losses`.

    Returns:
        One loss per object, (M,): the mean over the rounds, plus the weighted loss of
        the decoder of instances for the image of the object.
    """
    if "target" not in batch:
        raise ValueError("batch must be a batch from prepare, not from collate")
    target, losses = batch["target"], []
    for logits, iou in model(batch):  # (M, C, s, s) and (M, C)
        full = F.interpolate(logits.float(), target.shape[-2:], mode="bilinear")
        if "counted" in batch:  # certain, and right, where pixels are ignored
            full = full.masked_fill(~batch["counted"], -30.0)
        losses.append(object_losses(full, iou, target, loss))
    of_masks = torch.stack(losses).mean(0)
    own: Any = getattr(model, "module", model)
    if own.auxiliary is None:
        return of_masks
    if "instances" not in batch:
        raise ValueError(
            'items have no label map: add "instances", (H, W) integers, such as data.instances(i)'
        )
    of_images = instance_losses(own.auxiliary_output, batch["instances"])
    # Not of_images[index], whose gradient on a CPU is summed in no fixed order.
    weighted: Tensor = own.auxiliary.weight * of_images.index_select(0, batch["image_index"])
    return of_masks + weighted


def check_direction(loss: Loss, device: torch.device) -> None:
    """Check that a loss is lower for the true mask than for its opposite.

    It is not if it expects several classes, such as `nn.CrossEntropyLoss`: it is 0 for any mask.

    Raises:
        ValueError: It is not.
    """
    target = torch.zeros(2, 1, 64, 64, device=device)
    target[..., :32] = 1
    both: list[Any] = [loss(logits, target) for logits in (20 * target - 10, 10 - 20 * target)]
    right, wrong = both
    if isinstance(right, Tensor) and wrong.mean() <= right.mean() < math.inf:
        raise ValueError(
            f"loss is {right.mean():.3g} for the true mask, and {wrong.mean():.3g} for its "
            "opposite: it must be lower for logits that are positive where the target is 1"
        )


def check_loss(
    sums: Tensor, losses: Tensor, raw: dict[str, Any], images: Dataset[Item], epoch: int, step: int
) -> None:
    """Check that the loss of a step is finite, before its gradients change the weights. Collective.

    Args:
        sums: sums over all ranks, the first of which is that of the losses.
        losses: the losses of this rank, (M,).
        raw: the batch of this rank, from `collate`.
        images: the data set.
        epoch: number of the epoch, from 1.
        step: number of the step in the epoch, from 1.

    Raises:
        FloatingPointError: It is not.
    """
    if math.isfinite(total := float(sums[0])):
        return
    wrong = raw["image_index"][~losses.detach().isfinite().cpu()].unique().tolist()
    known = raw.get("index")
    own = [
        f"image {n} of its batch" if known is None else name_of_image(images, int(known[n]))
        for n in wrong
    ]
    names = [name for each in all_gather(own) for name in each]
    raise FloatingPointError(
        f"the loss is {total} in epoch {epoch}, step {step}, for {', '.join(names[:3])}"
        f"{', ...' if len(names) > 3 else ''}; the weights are those of the step before. Use a "
        "lower learning rate, or check that loss is finite for masks without pixels"
    )
