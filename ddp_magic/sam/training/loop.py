"""The training loop.

It runs in one process without a process group, or on many ranks. `notebooks/sam_loop.ipynb` is the
same loop as a flat cell, to copy and change.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import set_seed

from ddp_magic.sam.arguments import check_functions, check_minimum
from ddp_magic.sam.arrays.items import Item
from ddp_magic.sam.data.access import check_objects, size_of
from ddp_magic.sam.data.batches import prepare
from ddp_magic.sam.data.sampling import Sampled, Transform, epoch_loader, mix, set_epoch
from ddp_magic.sam.evaluation.evaluate import evaluate
from ddp_magic.sam.models.adapter import is_frozen
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.process_group import (
    all_gather,
    all_reduce_sum,
    bar,
    barrier,
    print0,
    rank_and_world,
    setup,
)
from ddp_magic.sam.training.checkpoint import Parts, begin, note_config, save
from ddp_magic.sam.training.embeddings import encoded_once
from ddp_magic.sam.training.losses import Loss, check_direction, check_loss, dice_bce, step_losses
from ddp_magic.sam.training.optimizers import adamw, optimizer_and_rate, warmup_cosine

CLIP = 1.0  # maximum norm of the gradient
IGNORED = (
    "find_unused_parameters=True was specified",  # mixed prompts may use all parameters
    "Grad strides do not match",  # of 1 x 1 convolutions, in DDP; this does not matter
    "Detected call of `lr_scheduler.step",  # fp16 skips the first steps, until its scale fits
)


def train(  # noqa: PLR0913, PLR0915 -- one visible loop
    model: nn.Module,
    train_set: Dataset[Item] | DataLoader[Any],
    val_set: Dataset[Item],
    *,
    epochs: int = 12,
    batch_size: int = 16,
    loss: Loss = dice_bce,
    optimizer: Callable[[list[nn.Parameter]], optim.Optimizer] = adamw,
    schedule: Callable[[optim.Optimizer, int], LRScheduler] = warmup_cosine,
    transform: Transform | None = None,
    on_step: Callable[[dict[str, float]], object] | None = None,
    on_epoch: Callable[[list[dict[str, float]]], object] | None = None,
    out_dir: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> list[dict[str, float]]:
    """Fine-tune `model` in place on prompts. All ranks call it with the same arguments.

    Args:
        model: a SamModel, SamHQModel, Sam2Model or Sam3TrackerModel; or a `PromptedSam` around one,
            to choose prompts, rounds, masks per click and dtype. Frozen parameters stay frozen
            (`tune`). If the encoder is frozen, each image is encoded only once.
        train_set: a `SamDataset`, a torch `Subset` of one, any data set with such items, `Sampled`
            around one, or a DataLoader of one of these, whose batches and processes are used.
        val_set: the held-out data set.
        epochs: total number of epochs, including those before `resume`.
        batch_size: number of images per rank and step.
        loss: a function of logits and targets, (n, 1, T, T) each, that returns a loss per mask or
            pixel: a loss of MONAI or torch with `reduction="none"`.
        optimizer: a function of the trained parameters that returns an optimizer. AdamW's 3e-3 is
            for random weights; for pretrained ones use `lambda p: optim.AdamW(p, lr=1e-4)`.
        schedule: a function of the optimizer and the number of steps that returns a scheduler.
        transform: a function of an item (`ddp_magic.sam.arrays.items`) and a torch.Generator that
            returns the augmented item, such as a `MonaiTransform`.
        on_step: called on all ranks after each step with `step`, `loss` and `lr`.
        on_epoch: called on all ranks after each epoch with the history; True stops the training.
        out_dir: folder for `best` (highest held-out Dice) and `last`, both for `from_pretrained`;
            `log.csv`; and the embeddings of a frozen encoder. None: nothing is written.
        seed: seed for the order of the images, the objects, the prompts and `transform`; in each
            epoch also for Python, NumPy and torch, where the ranks differ.
        resume: whether to go on from `out_dir/last`, with the same result as without the
            interruption. After a restart by torch's agent (`--max-restarts`) this is automatic.
        overwrite: whether to replace the checkpoints in `out_dir`.

    Returns:
        A row per epoch: epoch, lr, train_loss, the scores of `evaluate`, seconds; and of training
        images_per_s and data_wait, the fraction of the time in which it waits for images.

    Raises:
        FloatingPointError: The loss is NaN or infinite.
        OSError, TypeError, ValueError: `out_dir` cannot be used, or another argument is invalid.
    """
    check_functions(loss=loss, optimizer=optimizer, schedule=schedule)
    check_functions(or_none=True, transform=transform, on_step=on_step, on_epoch=on_epoch)
    check_minimum(1, epochs=epochs, batch_size=batch_size)
    folder = None if out_dir is None else Path(out_dir).expanduser()
    device, (rank, world) = setup(), rank_and_world()
    check_direction(loss, device)
    wrapper = (model if isinstance(model, PromptedSam) else PromptedSam(model)).to(device)
    loader, images = epoch_loader(train_set, batch_size, seed, transform, decoder=wrapper.auxiliary)
    _check_sets(wrapper, images, val_set)
    opt, rate = optimizer_and_rate(optimizer, schedule, wrapper, epochs * len(loader))
    scaler = torch.amp.GradScaler(device.type, enabled=wrapper.amp == "fp16")
    parts: Parts = {"model": wrapper, "optimizer": opt, "schedule": rate, "scaler": scaler}
    with ExitStack() as at_end:
        at_end.enter_context(_without_warnings())
        # The weights of rank 0. Which parameters get a gradient depends on the prompts.
        ddp: nn.Module = DDP(wrapper, find_unused_parameters=True) if world > 1 else wrapper
        note_config(wrapper, images.dataset, val_set)
        history, call = begin(folder, parts, epochs, resume=resume, overwrite=overwrite)
        val_set = at_end.enter_context(encoded_once(wrapper, loader, val_set, folder))
        first = len(history)
        progress = at_end.enter_context(bar(total=(epochs - first) * len(loader), mininterval=0.5))
        for epoch in range(first, epochs):
            set_epoch(loader, epoch)
            # So that resuming gives the same result, whatever draws numbers.
            set_seed(mix(seed, epoch, rank) % 2**32)
            ddp.train()
            totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, objects, images
            start = requested = time.perf_counter()
            waited_s = 0.0
            for number, raw in enumerate(loader):
                waited_s += time.perf_counter() - requested
                batch = prepare(raw, wrapper.geometry, device)
                losses = step_losses(ddp, batch, loss)  # (M,)
                sums = [losses.detach().sum(), len(losses), len(raw["sizes"])]
                of_step = all_reduce_sum(torch.tensor(sums, dtype=torch.float64, device=device))
                # DDP averages over ranks; times world / objects, this is the mean over all objects.
                objects = of_step[1].clamp(min=1).float()
                scaler.scale(losses.sum() * world / objects).backward()  # type: ignore[no-untyped-call]
                scaler.unscale_(opt)
                mean = float(of_step[0] / of_step[1])  # NaN without objects
                check_loss(of_step, losses, raw, images.dataset, epoch + 1, number + 1)
                nn.utils.clip_grad_norm_(wrapper.parameters(), CLIP)
                lr = opt.param_groups[0]["lr"]
                scaler.step(opt)
                scaler.update()
                rate.step()
                opt.zero_grad(set_to_none=True)
                totals += of_step
                if on_step:
                    on_step({"step": epoch * len(loader) + number + 1, "loss": mean, "lr": lr})
                progress.update()
                requested = time.perf_counter()
            trained_s, (total, objects, seen) = time.perf_counter() - start, totals.tolist()
            row = {"epoch": epoch + 1, "lr": lr, "train_loss": total / max(objects, 1)}
            row |= evaluate(wrapper, val_set, batch_size=batch_size, workers=loader.num_workers)
            row |= {"seconds": time.perf_counter() - start, "images_per_s": seen / trained_s}
            history.append(row | {"data_wait": waited_s / trained_s})
            progress.clear()
            _report(history[-1], epochs, header=epoch == first)
            save(folder, parts, history, call)
            if on_epoch and any(all_gather(bool(on_epoch(history)))):  # all stop if one does
                print0(f"stopped after epoch {epoch + 1}: on_epoch returned True")
                break
        del ddp  # one that outlives its gloo group can hang the process at exit
    barrier()  # after this, every rank can read what rank 0 has written
    return history


def _check_sets(wrapper: PromptedSam, images: Sampled, val_set: Dataset[Item]) -> None:
    """Check that a model can be trained on its data sets.

    Raises:
        TypeError: `val_set` is not a data set.
        ValueError: There is no object, or `transform` cannot have an effect.
    """
    size_of(val_set, "val_set")
    check_objects(images.dataset)
    if is_frozen(wrapper.sam) and images.transform:
        raise ValueError("transform cannot change images that a frozen encoder encodes only once")


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore the warnings of `IGNORED` in a `with` block."""
    with warnings.catch_warnings():
        for words in IGNORED:
            warnings.filterwarnings("ignore", words)
        yield


def _report(row: dict[str, float], epochs: int, *, header: bool) -> None:
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
