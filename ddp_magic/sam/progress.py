"""The progress of training: the printed rows, and early stopping."""

from __future__ import annotations

from ddp_magic.sam.process_group import print0


def is_stuck(history: list[dict[str, float]], patience: int) -> bool:
    """Return whether held-out Dice has not improved in the last `patience` epochs; 0: False."""
    dice = [row["dice"] for row in history]
    return 0 < patience < len(dice) and max(dice[-patience:]) <= max(dice[:-patience])


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
