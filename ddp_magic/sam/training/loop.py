"""The training loop.

It runs in one process without a process group, or on many ranks. `notebooks/sam_loop.ipynb` is the
same loop as a flat cell, to copy and change.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import set_seed

from ddp_magic.sam.arguments import check_flags, check_functions, check_minimum
from ddp_magic.sam.arrays.items import Item
from ddp_magic.sam.data.access import check_objects, size_of
from ddp_magic.sam.data.augmentation import MonaiTransform
from ddp_magic.sam.data.batches import prepare
from ddp_magic.sam.data.sampling import Transform, epoch_loader, mix, set_epoch
from ddp_magic.sam.evaluation.evaluate import CLICKS, mean_scores, score_objects
from ddp_magic.sam.models.adapter import is_frozen
from ddp_magic.sam.models.model import PromptedSam, with_rounds
from ddp_magic.sam.process_group import (
    all_gather,
    all_reduce_sum,
    bar,
    barrier,
    first_rank,
    print0,
    rank_and_world,
    setup,
)
from ddp_magic.sam.training.checkpoint import Parts, claim, load, note_config, save
from ddp_magic.sam.training.embeddings import shared_folder, store_embeddings
from ddp_magic.sam.training.losses import Loss, check_direction, check_loss, dice_bce, step_losses
from ddp_magic.sam.training.optimizers import adamw, optimizer_and_rate, warmup_cosine

CLIP = 1.0  # maximum norm of the gradient
IGNORED = (
    "find_unused_parameters=True was specified",  # mixed prompts may use all parameters
    "Grad strides do not match",  # of 1 x 1 convolutions, in DDP; this does not matter
    "Detected call of `lr_scheduler.step",  # fp16 skips the first steps, until its scale fits
)


def train(  # noqa: C901, PLR0912, PLR0913, PLR0915 -- one visible loop
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
    """Fine-tune `model` in place on prompts.

    This is a collective: all ranks call it with the same arguments. Rank 0 prints a row per epoch,
    and writes to `out_dir`: `best` (highest held-out Dice) and `last`, both for `from_pretrained`;
    `log.csv`; and the embeddings of a frozen encoder.

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
        schedule: a function of the optimizer and the number of steps that returns a scheduler of
            torch, which is called after each step.
        transform: a function of an item and a torch.Generator that returns the augmented item, such
            as a `MonaiTransform`. What an item contains is in `ddp_magic.sam.arrays.items`.
        on_step: called on all ranks after each step with `step`, `loss` and `lr`.
        on_epoch: called on all ranks after each epoch with the history; training stops if it
            returns True.
        out_dir: folder for checkpoints and logs; None: nothing is written.
        seed: seed for the order of the images, the objects, the prompts and `transform`. Each epoch
            also seeds Python, NumPy and torch with it, the ranks differently.
        resume: whether to go on from `out_dir/last`, with the same result as without the
            interruption; a line is printed if the data sets differ. After a restart by torch's
            agent (`--max-restarts`) this is automatic.
        overwrite: whether to replace the checkpoints in `out_dir`.

    Returns:
        The history, a row per epoch: epoch, lr, train_loss, the scores of `evaluate`, seconds (of
        training and scoring), images_per_s and data_wait (speed of training, and the fraction of
        its time waiting for images).

    Raises:
        ValueError: An argument is invalid, or the training set has no objects.
        TypeError: `model` is not of the SAM family, or an argument is not a data set or a function.
        FloatingPointError: The loss is NaN or infinite.
        OSError: `out_dir` cannot be used (`ddp_magic.sam.training.checkpoint.claim`).
    """
    size_of(val_set, "val_set")
    check_functions(loss=loss, optimizer=optimizer, schedule=schedule)
    functions = {"transform": transform, "on_step": on_step, "on_epoch": on_epoch}
    check_functions(**{name: given for name, given in functions.items() if given is not None})
    check_minimum(1, epochs=epochs, batch_size=batch_size)
    check_minimum(None, seed=seed)
    check_flags(resume=resume, overwrite=overwrite)
    if resume and out_dir is None:
        raise ValueError("resume=True needs out_dir, the folder with the checkpoint to resume from")
    if resume and overwrite:
        raise ValueError(
            "resume=True goes on from the checkpoints in out_dir, and overwrite=True replaces "
            "them: use one of the two"
        )
    folder = out_dir and Path(out_dir).expanduser()
    device, (rank, world) = setup(), rank_and_world()
    check_direction(loss, device)
    wrapper = (model if isinstance(model, PromptedSam) else PromptedSam(model)).to(device)
    loader, images = epoch_loader(train_set, batch_size, seed, transform, device)
    own = not isinstance(images.transform, (MonaiTransform, type(None)))  # it may use the label map
    images.instances = own or wrapper.auxiliary is not None
    if is_frozen(wrapper.sam) and images.transform:
        raise ValueError("transform cannot change images that a frozen encoder encodes only once")
    with ExitStack() as at_end, warnings.catch_warnings():
        for words in IGNORED:
            warnings.filterwarnings("ignore", words)
        check_objects(images.dataset)
        trained = [p for p in wrapper.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("all parameters of the model are frozen: tune(model, 'decoder')")
        opt, rate = optimizer_and_rate(optimizer, schedule, trained, epochs * len(loader))
        scaler = torch.amp.GradScaler(device.type, enabled=wrapper.amp == "fp16")
        call, history = "", []
        parts: Parts = {"model": wrapper, "optimizer": opt, "schedule": rate, "scaler": scaler}
        # The weights of rank 0. Which parameters get a gradient depends on the prompts.
        ddp: nn.Module = DDP(wrapper, find_unused_parameters=True) if world > 1 else wrapper
        note_config(wrapper, images.dataset, val_set)
        if folder:
            resume, call = first_rank(lambda: claim(folder, wrapper, resume, overwrite))
            history = load(folder, parts) if resume else []
        if is_frozen(wrapper.sam):
            stored = folder / "embeddings" if folder else at_end.enter_context(shared_folder())
            images.dataset, val_set = (
                store_embeddings(wrapper, each, stored, workers=loader.num_workers)
                for each in (images.dataset, val_set)
            )
        scorer = with_rounds(wrapper, max(CLICKS))
        first = len(history)
        if first >= epochs:
            print0(f"{folder} has {first} epochs already: nothing is trained; use more epochs")
        steps = (epochs - first) * len(loader)
        progress = at_end.enter_context(bar(total=steps, mininterval=0.5))
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
                mean = float(of_step[0] / objects)
                check_loss(mean, losses, raw, images.dataset, epoch + 1, number + 1)
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
            table = score_objects(
                scorer, val_set, batch_size=batch_size, workers=loader.num_workers
            )
            row = {"epoch": epoch + 1, "lr": lr, "train_loss": total / max(objects, 1)}
            row |= mean_scores(table)
            row |= {"seconds": time.perf_counter() - start, "images_per_s": seen / trained_s}
            history.append(row | {"data_wait": waited_s / trained_s})
            progress.clear()
            _report(history[-1], epochs, header=epoch == first)
            if folder:
                save(folder, parts, history, call)
            # All ranks stop if one does.
            if on_epoch and any(all_gather(bool(on_epoch(history)))):
                print0(f"stopped after epoch {epoch + 1}: on_epoch returned True")
                break
        del ddp  # one that outlives its gloo group can hang the process at exit
    barrier()  # after this, every rank can read what rank 0 has written
    return history


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
