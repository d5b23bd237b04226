"""Checks of what `train` is given, and of its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn, optim
from torch.utils.data import Dataset

from ddp_magic.sam.arrays.items import Item
from ddp_magic.sam.data.access import name_of_image
from ddp_magic.sam.process_group import all_gather, print0


def check_optimizer(opt: object, trained: Sequence[nn.Parameter]) -> None:
    """Check that an optimizer has the parameters that are trained.

    Raises:
        TypeError: It is not an optimizer.
        ValueError: It has other parameters.
    """
    if not isinstance(opt, optim.Optimizer):
        raise TypeError(f"optimizer must return an optimizer of torch, not {opt!r}")
    held = {id(p) for group in opt.param_groups for p in group["params"]}
    number = sum(id(p) in held for p in trained)
    if not number:
        raise ValueError(
            "optimizer returned one with none of the trained parameters, but those of another "
            "model: make it from its argument, such as lambda p: torch.optim.AdamW(p, lr=1e-4)"
        )
    if number < len(trained):
        print0(f"optimizer has {number} of {len(trained)} trained parameters; the others stay")


def check_schedule(schedule: object, opt: optim.Optimizer) -> None:
    """Check that a schedule changes the learning rate of an optimizer.

    Raises:
        TypeError: It is not a schedule.
        ValueError: It is of another optimizer.
    """
    if not isinstance(schedule, optim.lr_scheduler.LRScheduler):
        raise TypeError(f"schedule must return a scheduler of torch, not {schedule!r}")
    if schedule.optimizer is not opt:
        raise ValueError("schedule returned one of another optimizer: make it from its argument")


def check_loss(
    mean: float, losses: Tensor, raw: dict[str, Any], images: Dataset[Item], epoch: int, step: int
) -> None:
    """Check that the loss of a step is finite, before its gradients change the weights. Collective.

    Args:
        mean: the loss of all ranks.
        losses: the losses of this rank, (M,).
        raw: the batch of this rank, from `collate`.
        images: the data set.
        epoch: number of the epoch, from 1.
        step: number of the step in the epoch, from 1.

    Raises:
        FloatingPointError: It is not.
    """
    if math.isfinite(mean):
        return
    wrong = raw["image_index"][~losses.detach().isfinite().cpu()].unique().tolist()
    known = raw.get("index")
    own = [
        f"image {n} of its batch" if known is None else name_of_image(images, int(known[n]))
        for n in wrong
    ]
    names = [name for each in all_gather(own) for name in each]
    raise FloatingPointError(
        f"the loss is {mean} in epoch {epoch}, step {step}, for {', '.join(names[:3])}"
        f"{', ...' if len(names) > 3 else ''}; the weights are those of the step before. Use a "
        "lower learning rate, or check that loss is finite for masks without pixels"
    )
