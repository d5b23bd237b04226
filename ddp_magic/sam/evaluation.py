"""Scores of held-out objects, the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddp_magic.sam.batches import Geometry, by_size, collate, load, prepare
from ddp_magic.sam.data import Item, size_of
from ddp_magic.sam.metrics import dice_score, iou_score, pixel_accuracy
from ddp_magic.sam.model import PromptedSam, at_original_size, cost, in_pieces, masks_at
from ddp_magic.sam.plots import show_results
from ddp_magic.sam.process_group import rank_and_world
from ddp_magic.sam.prompts import first_prompts

CLICKS = (1, 2, 3, 5)  # the set's own prompt, and 1, 2 and 4 clicks more
SCORES = ("dice", "dice_2", "dice_3", "dice_5", "iou", "accuracy", "wrong_prompt_dice")

Table = dict[str, NDArray[Any]]


def evaluate(
    model: nn.Module,
    dataset: Dataset[Item],
    *,
    batch_size: int = 16,
    amp: str = "fp32",
    prompts: str | Mapping[str, float] = "points",
    multimask: bool | None = None,
    workers: int = 0,
) -> dict[str, float]:
    """Score every prompted object at its image's own size, each exactly once over all ranks.

    Beyond its first prompt an object is clicked on where the mask is wrong, in the middle, as
    someone would who corrects it. Collective: all ranks call it, and all get the same answer
    whatever their number.

    Args:
        model: the same weights on all ranks; or DDP around them.
        dataset: the same on all ranks.
        batch_size: images at a time.
        amp: "fp32", "bf16" or "fp16", as in `train`.
        prompts: the first ones, as in `train`, but exact: boxes fit, clicks are in the middle.
        multimask: as in `train`; None: as the model was trained.
        workers: processes a rank that load images.

    Returns:
        `dice`, `iou`, `accuracy`: means over the objects, with the first prompts; `dice_2`,
        `dice_3`, `dice_5`: Dice with 1, 2 and 4 clicks more; `wrong_prompt_dice`: mean Dice of what
        comes out for the prompt of *another* object of the image, near 0 if the model heeds its
        prompts; `count`: number of objects. NaN where there is nothing to average.
    """
    wrapper = PromptedSam(model, amp, max(CLICKS), prompts, multimask=multimask)
    return mean_scores(score_objects(wrapper, dataset, batch_size=batch_size, workers=workers))


def mean_scores(table: Table) -> dict[str, float]:
    """Return the means of a table of `score_objects`, and the number of objects."""
    known = {name: table[name][~np.isnan(table[name])] for name in SCORES}
    means = {name: float(x.mean()) if len(x) else float("nan") for name, x in known.items()}
    return {**means, "count": len(table["image"])}


@torch.no_grad()
def score_objects(
    wrapper: PromptedSam, dataset: Dataset[Item], *, batch_size: int = 16, workers: int = 0
) -> Table:
    """Score every object, dealt out over the ranks. Collective.

    Args:
        wrapper: a model with five rounds of prompts.
        dataset: the same on all ranks.
        batch_size: images at a time.
        workers: processes a rank that load images.

    Returns:
        On all ranks the same columns, float64, a row an object in the data set's order: `image`
        and `object`, numbers; then `SCORES`.
    """
    rank, world = rank_and_world()
    training, device = wrapper.sam.training, next(wrapper.parameters()).device
    wrapper.eval()
    n = size_of(dataset)
    numbers = range(rank, n, world)  # exact, where samplers pad
    loader = load(dataset, numbers, batch_size, workers, device)
    rows: list[NDArray[Any]] = [np.zeros((0, 2 + len(SCORES)))]
    for step, raw in enumerate(loader):
        batch = prepare(raw, wrapper.geometry, device)
        logits = wrapper.draw(batch)
        scores = _scores([logits[k - 1] for k in CLICKS], batch, wrapper.geometry)  # (M, scores)
        image_index = raw["image_index"]
        image = numbers[0] + (step * batch_size + image_index.double()) * world  # (M,)
        number = torch.arange(len(image)) - torch.searchsorted(image_index, image_index)
        rows.append(torch.cat([torch.stack([image, number], 1), scores.cpu()], 1).numpy())
    wrapper.train(training)
    table = np.concatenate(rows)
    if world > 1:
        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, table)
        table = np.concatenate(parts)
    table = table[np.lexsort((table[:, 1], table[:, 0]))]  # one order, whatever the ranks
    return dict(zip(("image", "object", *SCORES), table.T.copy(), strict=True))


def _scores(logits: list[Tensor], batch: dict[str, Any], geometry: Geometry) -> Tensor:
    """Return the scores of a batch's objects, given logits after each of `CLICKS`; (M, scores)."""
    image_index, masks = batch["image_index"], batch["masks"]
    scores = torch.full((len(masks), len(SCORES)), torch.nan, dtype=torch.float64)
    # The answer to a neighbor's prompt is there already: it is the neighbor's own prediction.
    other = neighbors(image_index)  # (M,)
    alone = other == torch.arange(len(other), device=other.device)
    groups = by_size(batch["sizes"][image_index.cpu()])
    pieces = [(hw, rows[some]) for hw, rows in groups for some in in_pieces(len(rows), cost(hw))]
    for (h, w), on_cpu in pieces:
        rows = on_cpu.to(masks.device)  # (m,)
        true = masks[rows, :h, :w]  # (m, h, w)
        first, *later = (at_original_size(each[rows], (h, w), geometry) for each in logits)
        wrong = at_original_size(logits[0][other[rows]], (h, w), geometry)
        control = dice_score(wrong, true).masked_fill(alone[rows], torch.nan)
        found = [
            dice_score(first, true),
            *(dice_score(pred, true) for pred in later),
            iou_score(first, true),
            pixel_accuracy(first, true),
            control,
        ]
        scores[on_cpu] = torch.stack(found, 1).cpu()
    return scores


def neighbors(image_index: Tensor) -> Tensor:
    """Return for each object the next one of the same image, cyclically; itself if it is alone.

    Args:
        image_index: (M,), ascending.

    Returns:
        Object numbers, (M,).
    """
    rows = torch.arange(len(image_index), device=image_index.device)
    first = torch.searchsorted(image_index, image_index)
    after = torch.searchsorted(image_index, image_index, right=True)
    return torch.where(rows + 1 < after, rows + 1, first)


def worst_images(table: Table, rows: int = 4) -> list[int]:
    """Return the numbers of the images with the lowest Dice of an object, the worst first."""
    order = table["image"][np.argsort(table["dice"], kind="stable")]
    return list(dict.fromkeys(order.astype(int).tolist()))[:rows]


@torch.no_grad()
def show_predictions(
    model: nn.Module,
    dataset: Dataset[Item],
    images: list[int] | None = None,
    *,
    title: str = "",
    rows: int = 4,
    prompts: str | Mapping[str, float] = "points",
    multimask: bool | None = None,
) -> None:
    """Draw images of a set with what the model makes of their prompts.

    Args:
        model: on any device. Only the calling rank works; nothing is collective.
        dataset: what to draw from.
        images: their numbers, such as `worst_images` gives; default: the first ones.
        title: of the figure.
        rows: the most images.
        prompts: the first ones, as in `evaluate`.
        multimask: as in `train`; None: as the model was trained.
    """
    numbers = list(range(min(rows, size_of(dataset)))) if images is None else images[:rows]
    if not numbers:
        return
    raw = collate([dataset[i] for i in numbers])
    wrapper, training = PromptedSam(model, prompts=prompts, multimask=multimask), model.training
    wrapper.eval()
    geometry = wrapper.geometry
    batch = prepare(raw, geometry, next(model.parameters()).device)
    side = geometry.image_size
    given = first_prompts(batch, wrapper.shares, wrapper.mask_size, side, random=False)
    (logits,) = wrapper.draw(batch | {"prompts": given})
    # The prompts are drawn too, in the images' own pixels.
    inside = torch.tensor([geometry.resized((h, w)) for h, w in raw["sizes"].tolist()])
    scale = (inside / raw["sizes"]).flip(1)[raw["image_index"]]  # (M, 2), x and y
    raw |= {
        "points": given.points.cpu() / scale[:, None],
        "labels": given.labels.cpu(),
        "boxes": given.boxes.cpu() / scale.repeat(1, 2),
    }
    wrapper.train(training)
    masks = torch.zeros_like(raw["masks"])  # (M, H, W)
    for (h, w), at in by_size(raw["sizes"][raw["image_index"]]):
        masks[at, :h, :w] = masks_at(logits[at.to(logits.device)], (h, w), geometry).cpu()
    show_results(raw, predictions=masks, title=title, rows=rows)
