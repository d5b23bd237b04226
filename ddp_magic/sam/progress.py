"""The progress of training: bar, rows and figures, the best epoch, and early stopping."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from tqdm.std import tqdm

from ddp_magic.sam.evaluation import Table, mean_scores, show_predictions, worst_images
from ddp_magic.sam.items import Item
from ddp_magic.sam.plots import show_history
from ddp_magic.sam.process_group import print0, rank_and_world


def progress_bar(batches: int) -> tqdm[Any]:
    """Create a progress bar as text, shown on rank 0 only."""
    hidden = rank_and_world()[0] != 0
    return tqdm(total=batches, disable=hidden, file=sys.stdout, mininterval=0.5, ncols=60)


def epoch_row(
    epoch: int,
    lr: float,
    train_loss: float,
    table: Table,
    images: int,
    seconds: float,
    waited_s: float,
) -> dict[str, float]:
    """Return the row of the history for an epoch, counted from 0.

    Args:
        epoch: index of the epoch.
        lr: learning rate of the last step.
        train_loss: mean loss of all objects.
        table: scores of the held-out objects.
        images: number of training images.
        seconds: duration of the epoch.
        waited_s: time during which rank 0 waited for images, in seconds.
    """
    return {
        "epoch": epoch + 1,
        "lr": lr,
        "train_loss": train_loss,
        **mean_scores(table),
        "seconds": seconds,
        "images_per_s": images / seconds,
        "data_wait": waited_s / seconds,
    }


def is_stuck(history: list[dict[str, float]], patience: int) -> bool:
    """Return whether held-out Dice has not improved in the last `patience` epochs; 0: False."""
    dice = [row["dice"] for row in history]
    return 0 < patience < len(dice) and max(dice[-patience:]) <= max(dice[:-patience])


def is_best(history: list[dict[str, float]]) -> bool:
    """Return whether the last epoch has the highest held-out Dice so far.

    Without held-out objects Dice is NaN, and the last epoch is always the best.
    """
    return not history[-1]["dice"] < max(row["dice"] for row in history)


def report(history: list[dict[str, float]], epochs: int, *, header: bool) -> None:
    """Print the row of the last epoch, with the column names above it if `header` is True."""
    row = history[-1]
    if header:
        print0(
            "epoch      loss  Dice@1     @2     @3     @5    IoU    acc  wrong images/s  wait     s"
        )
    scores = ("dice", "dice_2", "dice_3", "dice_5", "iou", "accuracy", "wrong_prompt_dice")
    print0(
        f"{row['epoch']:3.0f}/{epochs:<3} {row['train_loss']:7.3f}  "
        + " ".join(f"{row[name]:6.3f}" for name in scores)
        + f" {row['images_per_s']:8.1f} {row['data_wait']:5.0%} {row['seconds']:5.1f}"
    )


def show_progress(
    history: list[dict[str, float]],
    table: Table,
    sam: nn.Module,
    val_set: Dataset[Item],
    first_prompt: str,
) -> None:
    """Plot the learning curves and the worst held-out images of the last epoch.

    Args:
        history: rows of the epochs.
        table: scores of the held-out objects.
        sam: the model.
        val_set: the held-out data set.
        first_prompt: kind of the first prompt.
    """
    show_history(history)
    title = f"worst held-out images, epoch {len(history)}"
    show_predictions(sam, val_set, worst_images(table), title=title, prompts=first_prompt)
