"""What training makes small."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor, nn

from ddp_magic.sam.auxiliary import place_losses
from ddp_magic.sam.layers import resized
from ddp_magic.sam.metrics import iou_score
from ddp_magic.sam.process_group import unwrapped

LOSSES = ("dice+bce", "dice+focal")


def object_losses(logits: Tensor, iou: Tensor, target: Tensor, loss: str = "dice+bce") -> Tensor:
    """Loss of each object: of its best mask, plus the error of the model's guesses of their IoU.

    Of several masks (a click may mean a part or the whole) only the one with the smallest loss is
    corrected; the others may mean something else. All their guesses of IoU are.

    Args:
        logits: (M, C, T, T).
        iou: the guesses, (M, C).
        target: (M, 1, T, T), 0 to 1.
        loss: "dice+bce", Dice loss + binary cross-entropy; or "dice+focal", with 20 times focal
            loss in its place, as SAM was trained.

    Returns:
        One loss an object, (M,).

    Raises:
        ValueError: An unknown `loss`.

    Source:
        Kirillov et al., "Segment Anything", ICCV 2023, appendix A.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is one of {', '.join(LOSSES)}, not {loss!r}")
    logits = logits.float()  # in float16, the sums over a 256 x 256 mask overflow
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
    """Run `model` (a `PromptedSam`, in DDP or not) on a prepared batch.

    Returns:
        One loss an object, the mean over the rounds of clicks, (M,); with an auxiliary task, that
        one's too.
    """
    target, size = batch["target"], batch["target"].shape[-1]
    losses = []
    for logits, iou in model(batch):
        losses.append(object_losses(resized(logits, size), iou, target, loss))
    of_masks = torch.stack(losses).mean(0)
    own = unwrapped(model)
    if own.auxiliary is None:
        return of_masks
    of_places: Tensor = own.auxiliary.weight * place_losses(own.told, target, batch["image_index"])
    return of_masks + of_places
