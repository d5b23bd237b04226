"""Evaluation on held-out objects. The scores do not depend on the number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ddp_magic.sam.arguments import check_flags, check_minimum
from ddp_magic.sam.arrays.items import Item
from ddp_magic.sam.data.access import check_same_images, image_of, instances_of, size_of
from ddp_magic.sam.data.batches import Geometry, collate, prepare
from ddp_magic.sam.evaluation import metrics
from ddp_magic.sam.evaluation.plots import show_results
from ddp_magic.sam.inference.predict import evaluating
from ddp_magic.sam.inference.segment import segment
from ddp_magic.sam.models.model import PromptedSam, with_rounds
from ddp_magic.sam.models.postprocessing import masks_at, resizing
from ddp_magic.sam.models.prompts import first_prompts
from ddp_magic.sam.process_group import all_gather, bar, check_same, rank_and_world

CLICKS = (1, 2, 3, 5)  # numbers of prompts: the first one, and 1, 2 and 4 more clicks
SCORES = ("dice", "dice_2", "dice_3", "dice_5", "iou", "accuracy", "wrong_prompt_dice")

# After two seconds, in the line of the training's bar: a line below it needs a terminal.
BAR: dict[str, Any] = {"delay": 2, "position": 0}

Table = dict[str, NDArray[Any]]


def evaluate(
    model: nn.Module,
    dataset: Dataset[Item],
    *,
    batch_size: int = 16,
    workers: int = 0,
    instances: bool = False,
) -> dict[str, float]:
    """Evaluate a model on every prompted object, at the original size of its image.

    After the first prompt of an object, further clicks are placed in the middle of the largest
    region where the predicted mask is wrong.

    This is a collective: all ranks must call it, and all get the same result. Each object is
    evaluated exactly once, whatever the number of ranks.

    Args:
        model: a model of the SAM family with the same weights on all ranks; or a `PromptedSam`
            around one, which chooses the first prompt (the most common one of a mixture), masks per
            click and dtype; or DDP around one. Here prompts are exact: boxes are tight, and clicks
            are in the middle of the object.
        dataset: the same data set on all ranks.
        batch_size: number of images per batch.
        workers: number of data loading processes per rank.
        instances: whether to compare the result of `segment`, without a prompt, to the label maps
            too. Every object of the images must be in them.

    Returns:
        `dice`, `iou` and `accuracy`: means over the objects, with the first prompt only; `dice_2`,
        `dice_3` and `dice_5`: mean Dice with 1, 2 and 4 more clicks; `wrong_prompt_dice`: mean Dice
        with the prompt of *another* object of the same image, near 0 if the model follows its
        prompts; `count`: number of objects. A mean over no objects is NaN. With `instances`, also
        the scores of `instance_scores`: `ap_50`, `ap_75`, `ap`, `pq` and others.

    Raises:
        ValueError: `instances` is True, and the items of the data set have no label map; or the
            ranks have different data sets or weights.
    """
    check_minimum(1, batch_size=batch_size)
    check_minimum(0, workers=workers)
    check_flags(instances=instances)
    check_same_images(dataset, "dataset")
    weights = torch.stack([p.detach().flatten()[0].float() for p in model.parameters()]).tolist()
    check_same("model", weights, "load or train the same weights on all ranks")
    wrapper = with_rounds(model, max(CLICKS))
    means = mean_scores(score_objects(wrapper, dataset, batch_size=batch_size, workers=workers))
    if not instances:
        return means
    rank, world = rank_and_world()
    own: list[metrics.Matches] = []
    for i in bar(range(rank, size_of(dataset), world), "segment", **BAR):
        if (true := instances_of(dataset, i)) is None:
            raise ValueError(
                f'item {i} has no label map: add "instances", (H, W) integers, to the items'
            )
        image = image_of(dataset, i).transpose(1, 2, 0)  # (H, W, 3)
        found = segment(model, image, quiet=True)
        own.append(metrics.match_objects(found, true.clamp(min=0), true < 0))
    return means | metrics.pooled_scores([each for part in all_gather(own) for each in part])


def mean_scores(table: Table) -> dict[str, float]:
    """Return the means of a table from `score_objects`, and the number of objects."""
    known = {name: table[name][~np.isnan(table[name])] for name in SCORES}
    means = {name: float(x.mean()) if len(x) else float("nan") for name, x in known.items()}
    return {**means, "count": len(table["image"])}


@torch.no_grad()
def score_objects(
    wrapper: PromptedSam, dataset: Dataset[Item], *, batch_size: int = 16, workers: int = 0
) -> Table:
    """Compute the scores of every object. Collective: each rank takes a part of the images.

    Args:
        wrapper: a model with five rounds of prompts.
        dataset: the same data set on all ranks.
        batch_size: number of images per batch.
        workers: number of data loading processes per rank.

    Returns:
        The same columns on all ranks, float64, with one row per object in the order of the data
        set: the indices `image` and `object`, then `SCORES`.
    """
    rank, world = rank_and_world()
    training, device = wrapper.sam.training, next(wrapper.parameters()).device
    numbers = range(rank, size_of(dataset), world)  # samplers would pad
    loader = DataLoader(
        Subset(dataset, numbers),
        int(batch_size),  # torch takes no integers of NumPy
        collate_fn=collate,
        num_workers=int(workers),
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global one does not change
    )
    rows: list[NDArray[Any]] = [np.zeros((0, 2 + len(SCORES)))]
    wrapper.eval()
    for step, raw in enumerate(bar(loader, "evaluate", leave=False, **BAR)):
        batch = prepare(raw, wrapper.geometry, device)
        logits = wrapper.predict_logits(batch)
        scores = _scores([logits[k - 1] for k in CLICKS], batch, wrapper.geometry)  # (M, scores)
        of = raw["image_index"]
        image = rank + (step * batch_size + of.double()) * world  # (M,)
        number = torch.arange(len(of)) - torch.searchsorted(of, of)
        rows.append(torch.cat([torch.stack([image, number], 1), scores.cpu()], 1).numpy())
    wrapper.train(training)
    table: NDArray[Any] = np.concatenate(all_gather(np.concatenate(rows)))
    table = table[np.lexsort((table[:, 1], table[:, 0]))]  # independent of the number of ranks
    return dict(zip(("image", "object", *SCORES), table.T.copy(), strict=True))


def _scores(logits: list[Tensor], batch: dict[str, Any], geometry: Geometry) -> Tensor:
    """Return the scores (M, scores) of a batch, given the logits for each number in `CLICKS`.

    Each object is scored in a window around it and its predictions.
    """
    image_index, masks, sizes = batch["image_index"], batch["masks"], batch["sizes"].tolist()
    # The prediction for the prompt of another object is that object's own prediction.
    other = neighbors(image_index).tolist()
    scores, ignored = [], batch.get("ignored")  # (B, H, W)
    resize = {(h, w): resizing(logits[0].shape[-1], (h, w), geometry, masks) for h, w in sizes}
    for row, image in enumerate(image_index.tolist()):
        h, w = sizes[image]
        whole, counted = masks[row, :h, :w], h * w
        low = torch.stack([*(each[row, 0] for each in logits), logits[0][other[row], 0]])
        window = resize[h, w].window(low, whole)
        preds, true = resize[h, w].part(low, window), whole[window].expand(len(low), -1, -1)
        if ignored is not None:  # right, and then not counted
            preds = preds.masked_fill(ignored[image][window], -1.0)
            counted -= int(ignored[image].sum())
        preds = preds > 0
        dice, iou = metrics.dice_score(preds, true), metrics.iou_score(preds[0], true[0])
        # Outside of the window, all pixels are right.
        wrong = (1 - metrics.pixel_accuracy(preds[0], true[0])) * true[0].numel() / counted
        control = dice[-1] if other[row] != row else dice.new_tensor(torch.nan)
        scores.append(torch.stack([*dice[:-1], iou, 1 - wrong, control]))
    return torch.stack(scores) if scores else torch.zeros(0, len(SCORES), dtype=torch.float64)


def neighbors(image_index: Tensor) -> Tensor:
    """Return for each object the next object of the same image, cyclically.

    Args:
        image_index: index of the image of each object, (M,), ascending.

    Returns:
        Object indices, (M,); an object that is alone in its image gets its own index.
    """
    rows = torch.arange(len(image_index), device=image_index.device)
    first = torch.searchsorted(image_index, image_index)
    after = torch.searchsorted(image_index, image_index, right=True)
    return torch.where(rows + 1 < after, rows + 1, first)


@torch.no_grad()
def show_predictions(
    model: nn.Module,
    dataset: Dataset[Item],
    images: list[int] | None = None,
    *,
    title: str = "",
    rows: int = 4,
) -> None:
    """Plot images of a data set with the predictions of a model.

    This is not a collective: call it on one rank.

    Args:
        model: a model of the SAM family on any device, or a `PromptedSam`, as in `evaluate`.
        dataset: the data set.
        images: indices of the images; default: the first ones.
        title: title of the figure.
        rows: maximum number of images.
    """
    numbers = list(range(size_of(dataset)) if images is None else images)[:rows]
    if not numbers:
        return
    raw = collate([dataset[i] for i in numbers])
    with evaluating(model) as (wrapper, device):
        geometry, side = wrapper.geometry, wrapper.geometry.image_size
        batch = prepare(raw, geometry, device)
        given = first_prompts(batch, wrapper.shares, wrapper.mask_size, side, random=False)
        (logits,) = wrapper.predict_logits(batch | {"prompts": given})
    # The prompts, in pixels of the original images.
    inside = torch.tensor([geometry.resized((h, w)) for h, w in raw["sizes"].tolist()])
    scale = (inside / raw["sizes"]).flip(1)[raw["image_index"]]  # (M, 2), x and y
    points, boxes = given.points.cpu() / scale[:, None], given.boxes.cpu() / scale.repeat(1, 2)
    masks = torch.zeros_like(raw["masks"])  # (M, H, W)
    for row, (h, w) in enumerate(raw["sizes"][raw["image_index"]].tolist()):
        masks[row, :h, :w] = masks_at(logits[row, None], (h, w), geometry)[0]
    raw |= {"points": points, "labels": given.labels.cpu(), "boxes": boxes}
    show_results(raw, predictions=masks, title=title, rows=rows)
