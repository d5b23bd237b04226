"""A dry run before training, to find parameters that get no gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset

from ddp_magic.sam.batches import collate, prepare
from ddp_magic.sam.dataset_access import may_have_boxes
from ddp_magic.sam.items import Item, no_prompts, pick_objects
from ddp_magic.sam.model import PromptedSam
from ddp_magic.sam.process_group import rank_and_world


def one_of_each(
    item: Item, train_set: Dataset[Item], wrapper: PromptedSam, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Prepare a batch with one object for each kind of first prompt that training will use."""
    one = pick_objects(item, torch.tensor([0])) | no_prompts(1)
    batch = prepare(collate([one]), wrapper.geometry, device)
    kinds = dict.fromkeys(wrapper.shares, batch)
    if "points" in kinds and may_have_boxes(train_set):  # those of the data set
        kinds["boxes"] = batch
    return kinds


def find_unused(
    model: PromptedSam, batches: Mapping[str, dict[str, Any]], rounds: Iterable[int]
) -> list[nn.Parameter]:
    """Freeze parameters that never get a gradient, so that DDP need not search for unused ones.

    Rank 0 runs a backward pass for each kind of first prompt and number of rounds. Parameters that
    get a gradient in only some of these are listed in `model.partly_used`.

    Args:
        model: a model on the rank's device, in training mode.
        batches: a prepared batch for each kind of first prompt.
        rounds: the numbers of rounds that training uses.

    Returns:
        The parameters that were frozen here.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reached: list[set[str]] = []
    if rank_and_world()[0] == 0:
        shares, most, model.partly_used = model.shares, model.rounds, []
        for (kind, batch), number in product(batches.items(), set(rounds)):
            model.shares, model.rounds = {kind: 1.0}, number
            sum(logits.sum() + iou.sum() for logits, iou in model(batch)).backward()
            reached.append({name for name, p in trained.items() if p.grad is not None})
            model.zero_grad(set_to_none=True)
        model.shares, model.rounds = shares, most
    if rank_and_world()[1] > 1:
        shared = [reached]
        device = next(model.parameters()).device
        dist.broadcast_object_list(shared, src=0, device=device)
        reached = shared[0]
    ever, always = set.union(*reached), set.intersection(*reached)
    model.partly_used = [trained[name] for name in trained if name in ever - always]
    frozen = [trained[name] for name in trained if name not in ever]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen
