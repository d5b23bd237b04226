"""A dry run before training, to find parameters that get no gradient."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from ddp_magic.sam.arrays.items import Item, no_prompts
from ddp_magic.sam.data.access import first_with_objects, item_of, may_have_boxes
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
        TypeError: `wrapper` is not a PromptedSam.
        ValueError: The training set has no objects, or all parameters are frozen.
    """
    if not isinstance(wrapper, PromptedSam):
        raise TypeError(f"wrapper must be a PromptedSam, not {type(wrapper).__name__}")
    if not any(p.requires_grad for p in wrapper.parameters()):
        raise ValueError("all parameters of the model are frozen: tune(model, 'decoder')")
    item = item_of(train_set, first_with_objects(train_set), lambda _: [0], instances=False)
    one = item | no_prompts(1)
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
