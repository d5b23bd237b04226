"""The progress of training: a bar, and a row per epoch."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.std import tqdm

from ddp_magic.sam.process_group import print0, rank_and_world


def progress_bar(batches: int) -> tqdm[Any]:
    """Create a progress bar as text, shown on rank 0 only."""
    hidden = rank_and_world()[0] != 0
    return tqdm(total=batches, disable=hidden, file=sys.stdout, mininterval=0.5, ncols=60)


def report(row: dict[str, float], epochs: int, *, header: bool) -> None:
    """Print the row of an epoch on rank 0, with the column names above it if `header` is True."""
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
