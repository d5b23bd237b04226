"""A dry run before training, to find parameters that get no gradient."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ddp_magic.sam.arrays.items import Item, no_prompts, pick_objects
from ddp_magic.sam.data.access import first_with_objects, may_have_boxes
from ddp_magic.sam.data.batches import collate, prepare
from ddp_magic.sam.models.adapter import positional_encoding
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.process_group import first_rank


def freeze_unused(wrapper: PromptedSam, train_set: Dataset[Item]) -> list[nn.Parameter]:
    """Freeze the parameters that never get a gradient, and the positional encoding.

    Otherwise DDP would have to search for them in each step. Rank 0 runs a backward pass for each
    kind of first prompt, with one round and with all. Parameters that get a gradient in only some
    of these are listed in `wrapper.partly_used`.

    Args:
        wrapper: the model, on the device of the rank.
        train_set: the training set. One of its objects is used.

    Returns:
        The parameters that were frozen here.

    Raises:
        ValueError: The training set has no objects.
    """
    item = train_set[first_with_objects(train_set)]
    one = pick_objects(item, torch.tensor([0])) | no_prompts(1)
    batch = prepare(collate([one]), wrapper.geometry, next(wrapper.parameters()).device)
    kinds = dict.fromkeys(wrapper.shares, batch)
    if "points" in kinds and may_have_boxes(train_set):  # those of the data set
        kinds["boxes"] = batch
    frozen = find_unused(wrapper.train(), kinds)
    frozen += [p for p in positional_encoding(wrapper.sam) if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def find_unused(model: PromptedSam, batches: Mapping[str, dict[str, Any]]) -> list[nn.Parameter]:
    """Freeze parameters that never get a gradient, and return them; see `freeze_unused`.

    Args:
        model: a model on the rank's device, in training mode.
        batches: a prepared batch for each kind of first prompt.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reached = first_rank(lambda: _reached(model, batches, trained))
    ever, always = set.union(*reached), set.intersection(*reached)
    model.partly_used = [trained[name] for name in trained if name in ever - always]
    frozen = [trained[name] for name in trained if name not in ever]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def _reached(
    model: PromptedSam, batches: Mapping[str, dict[str, Any]], trained: dict[str, nn.Parameter]
) -> list[set[str]]:
    """Return the names of the parameters that each kind of step reaches."""
    reached: list[set[str]] = []
    shares, most, model.partly_used = model.shares, model.rounds, []
    for (kind, batch), model.rounds in product(batches.items(), {1, most}):
        model.shares = {kind: 1.0}
        total = sum(logits.sum() + iou.sum() for logits, iou in model(batch))
        if model.auxiliary_output is not None:
            total = total + model.auxiliary_output.sum()
        total.backward()
        reached.append({name for name, p in trained.items() if p.grad is not None})
        model.zero_grad(set_to_none=True)
    model.shares, model.rounds = shares, most
    return reached
