"""Training losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor, nn

from ddp_magic.sam.arguments import check_choice
from ddp_magic.sam.instances import instance_losses
from ddp_magic.sam.layers import resized
from ddp_magic.sam.metrics import iou_score
from ddp_magic.sam.process_group import unwrapped

LOSSES = ("dice+bce", "dice+focal")


def object_losses(logits: Tensor, iou: Tensor, target: Tensor, loss: str = "dice+bce") -> Tensor:
    """Compute the loss of each object: the loss of its best mask, and of the predicted IoU.

    If there are several masks per object, only the one with the lowest loss is trained, because a
    click can mean a part or the whole. The predicted IoU of all masks is trained.

    Args:
        logits: (M, C, T, T).
        iou: predicted IoU, (M, C).
        target: true masks, (M, 1, T, T), from 0 to 1.
        loss: "dice+bce", Dice loss + binary cross-entropy; or "dice+focal", Dice loss + 20 * focal
            loss, as in SAM.

    Returns:
        One loss per object, (M,).

    Raises:
        ValueError: `loss` is invalid.

    Source:
        Kirillov et al., "Segment Anything", ICCV 2023, appendix A.
    """
    check_choice("loss", loss, LOSSES)
    logits = logits.float()  # in float16, sums over a 256 x 256 mask overflow
    true = target.expand_as(logits)
    mask_loss = DiceLoss(sigmoid=True, reduction="none")(logits, true).flatten(2).mean(2)  # (M, C)
    if loss == "dice+bce":
        pixels = F.binary_cross_entropy_with_logits(logits, true, reduction="none")
    else:
        pixels = 20 * FocalLoss(gamma=2.0, alpha=0.25, reduction="none")(logits, true)
    mask_loss = mask_loss + pixels.flatten(2).mean(2)
    truth = iou_score(logits.detach(), true > 0.5).to(iou)  # (M, C)
    best: Tensor = mask_loss.min(1).values + (iou - truth).square().mean(1)
    return best


def step_losses(model: nn.Module, batch: dict[str, Any], loss: str = "dice+bce") -> Tensor:
    """Run `model`, a `PromptedSam` or DDP around one, on a prepared batch, and compute its loss.

    Returns:
        One loss per object, (M,): the mean over the rounds, plus the weighted loss of
        the decoder of instances for the image of the object.
    """
    target, size = batch["target"], batch["target"].shape[-1]
    losses = []
    for logits, iou in model(batch):
        square = resized(logits, size)
        if "counted" in batch:  # certain, and right, where pixels are ignored
            square = square.masked_fill(~batch["counted"], -30.0)
        losses.append(object_losses(square, iou, target, loss))
    of_masks = torch.stack(losses).mean(0)
    own = unwrapped(model)
    if own.auxiliary is None:
        return of_masks
    of_images = instance_losses(own.auxiliary_output, batch["instances"])
    # Not of_images[index], whose gradient on a CPU is summed in no fixed order.
    weighted: Tensor = own.auxiliary.weight * of_images.index_select(0, batch["image_index"])
    return of_masks + weighted
