"""Fine-tuning SAM: the loss, the loop, the evaluation, the checkpoints.

The same code runs on one process without a process group and on many ranks.
"""

from __future__ import annotations

import csv
import math
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, Subset
from tqdm.std import tqdm
from transformers import SamModel
from transformers.utils import logging

from ddp_magic.prelude.data import SamDataset, Turned, by_size, collate, prepare
from ddp_magic.prelude.metrics import dice_score, iou_score, pixel_accuracy
from ddp_magic.prelude.model import (
    PromptedSam,
    at_original_size,
    freeze_unused,
    square_targets,
    thaw,
)
from ddp_magic.prelude.plots import show_results
from ddp_magic.prelude.process_group import all_reduce_sum, barrier, print0, rank_and_world, setup

CLICKS = (1, 2, 3, 5)  # the set's own, and 1, 2 and 4 more
SCORES = ("dice", "dice_2", "dice_3", "dice_5", "iou", "accuracy", "wrong_prompt_dice")


def object_losses(logits: Tensor, iou: Tensor, target: Tensor) -> Tensor:
    """Dice loss + binary cross-entropy + squared error of the model's guess of its own IoU.

    Args:
        logits: (M, 1, S, S).
        iou: the guess, (M, 1).
        target: (M, 1, S, S), 0 or 1.

    Returns:
        One loss an object, (M,).

    Source:
        Kirillov et al., "Segment Anything", ICCV 2023, has focal loss in place of cross-entropy.
    """
    logits = logits.float()  # in float16, the sums over a 256 x 256 mask overflow
    dice: Tensor = DiceLoss(sigmoid=True, reduction="none")(logits, target).flatten(1).mean(1)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)
    truth = iou_score(logits.detach(), target).to(iou)  # (M, 1)
    return dice + bce + (iou - truth).square().mean(1)


def step_losses(model: nn.Module, batch: dict[str, Tensor], image_size: int) -> Tensor:
    """Run `model` (DDP or not) on a prepared batch and compare in the model's square.

    Returns:
        One loss an object, the mean over the rounds of clicks, (M,).
    """
    batch = batch | square_targets(batch, image_size)
    square, target = (image_size, image_size), batch["target"]
    losses = []
    for logits, iou in model(batch):
        large = F.interpolate(logits.float(), square, mode="bilinear", align_corners=False)
        losses.append(object_losses(large, iou, target))
    return torch.stack(losses).mean(0)


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


@torch.no_grad()
def evaluate(
    model: SamModel, dataset: SamDataset, *, batch_size: int = 16, amp: str = "fp32"
) -> dict[str, float]:
    """Score every prompted object at its image's own size, each exactly once over all ranks.

    Beyond its first click an object is clicked on where the mask is wrong, in the middle, as
    someone would who corrects it.

    Collective: all ranks call it, and all get the same answer whatever their number.

    Args:
        model: the same weights on all ranks; or DDP around them.
        dataset: the same on all ranks.
        batch_size: images at a time.
        amp: "fp32", "bf16" or "fp16", as in `train`.

    Returns:
        `dice`, `iou`, `accuracy`: means over the objects, with the set's own clicks; `dice_2`,
        `dice_3`, `dice_5`: Dice with 1, 2 and 4 clicks more; `wrong_prompt_dice`: mean Dice of what
        comes out for the clicks of *another* object of the image, near 0 if the model heeds its
        prompts; `count`: number of objects. NaN where there is nothing to average.
    """
    rank, world = rank_and_world()
    wrapper, training = PromptedSam(model, amp, max(CLICKS)), model.training
    wrapper.eval()
    shard = Subset(dataset, range(rank, len(dataset), world))  # exact, where samplers pad
    sums = torch.zeros(len(SCORES), 2, dtype=torch.float64)  # (sum, count) of each score
    for raw in DataLoader(shard, batch_size, collate_fn=collate):
        batch = prepare(raw, wrapper.image_size, model.device)
        batch |= square_targets(batch, wrapper.image_size)
        logits = [logits for logits, _ in wrapper(batch)]
        sums += _score_sums([logits[k - 1] for k in CLICKS], batch, wrapper.image_size)
    wrapper.train(training)
    total = all_reduce_sum(sums.to(model.device)).cpu()
    means = (total[:, 0] / total[:, 1]).tolist()
    return {**dict(zip(SCORES, means, strict=True)), "count": int(total[0, 1])}


def _score_sums(logits: list[Tensor], batch: dict[str, Tensor], image_size: int) -> Tensor:
    """Add up the scores of one batch, given its logits after each of `CLICKS`; float64."""
    sums = torch.zeros(len(SCORES), 2, dtype=torch.float64)
    image_index, masks = batch["image_index"], batch["masks"]
    # The answer to a neighbor's clicks is there already: it is the neighbor's own prediction.
    other = neighbors(image_index)  # (M,)
    alone = other == torch.arange(len(other), device=other.device)
    for (h, w), on_cpu in by_size(batch["sizes"][image_index.cpu()]):
        rows = on_cpu.to(masks.device)  # (m,)
        true = masks[rows, :h, :w]  # (m, h, w)
        first, *later = (at_original_size(each[rows], (h, w), image_size) for each in logits)
        wrong = at_original_size(logits[0][other[rows]], (h, w), image_size)
        scores = (
            dice_score(first, true),
            *(dice_score(pred, true) for pred in later),
            iou_score(first, true),
            pixel_accuracy(first, true),
            dice_score(wrong, true)[~alone[rows]],
        )
        sums += torch.stack([s.new_tensor([s.sum(), len(s)]) for s in scores]).cpu()
    return sums


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Rise in the first 5 % of the steps, then fall along a cosine to 0."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train_epoch(
    ddp: nn.Module,
    loader: DataLoader[Any],
    rates: list[float],
    optimizer: optim.Optimizer,
    scaler: torch.amp.GradScaler,
    bar: tqdm[Any],
    image_size: int,
) -> float:
    """Go through the images once.

    Args:
        ddp: a `PromptedSam`, in DDP if there are several ranks.
        loader: this rank's batches.
        rates: learning rates of the steps.
        optimizer: of the model.
        scaler: of the losses, for float16.
        bar: moves one forward each step.
        image_size: S, the side of the model's square, in pixels.

    Returns:
        The mean loss over the objects of all ranks.
    """
    device = next(ddp.parameters()).device
    world = rank_and_world()[1]
    ddp.train()
    loss_sum, object_sum = torch.zeros(2, dtype=torch.float64, device=device)
    for raw, rate in zip(loader, rates, strict=False):
        batch = prepare(raw, image_size, device)
        losses = step_losses(ddp, batch, image_size)  # (M,)
        # DDP averages over ranks. The mean over *objects*, of which ranks have unequal
        # numbers, comes out if each rank divides by the average number instead of its own.
        objects = all_reduce_sum(torch.tensor(float(len(losses)), device=device))
        loss = losses.sum() * world / objects.clamp(min=1)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():  # of 1 x 1 convolutions, whose strides mean nothing
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        loss_sum += losses.detach().sum()
        object_sum += objects
        bar.update()
    return float(all_reduce_sum(loss_sum) / object_sum.clamp(min=1))


def train(  # noqa: PLR0913  each is a choice of whoever trains, and has a default
    model: SamModel,
    train_set: SamDataset,
    val_set: SamDataset,
    *,
    epochs: int = 12,
    batch_size: int = 16,
    lr: float = 3e-3,
    weight_decay: float = 0.0,
    amp: str = "fp32",
    rounds: int = 3,
    out_dir: str | Path | None = None,
    seed: int = 0,
    workers: int = 0,
    augment: bool = False,
    figures_every: int = 0,
    resume: bool = False,
) -> list[dict[str, float]]:
    """Fine-tune `model` on clicks, in place.

    Collective: all ranks call it with the same arguments. Rank 0 shows a progress bar, prints a
    line an epoch, and writes to `out_dir`: `log.csv`; `best` (by held-out Dice) and `last`, which
    `SamModel.from_pretrained` reads; `last/trainer.pt`, from which `resume` goes on.

    Args:
        model: the same on all ranks; moved to this rank's device. Freeze parts of it beforehand
            with `requires_grad_(False)`.
        train_set: the same on all ranks.
        val_set: the same on all ranks.
        epochs: times through the training set, those before `resume` included.
        batch_size: images a rank and step.
        lr: highest learning rate; 3e-3 suits `tiny_sam()`, 1e-5 to 1e-4 pretrained weights.
        weight_decay: AdamW's. Beware: it shrinks the parts that a single mask does not use.
        amp: "fp32", "bf16", or "fp16" with gradient scaling.
        rounds: of clicks on each object: its own, then each time one more where the mask is wrong.
            With 1 the model is trained for a single click, and gets worse by further ones.
        out_dir: folder for checkpoints and log; None: nothing is written.
        seed: of the order of the images.
        workers: processes a rank that load images.
        augment: mirror and turn the training images by quarters, anew in each epoch; right where
            up and down mean nothing, as under a microscope.
        figures_every: draw predictions every so many epochs; 0: never.
        resume: go on from `out_dir/last`, as if never interrupted.

    Returns:
        A row an epoch: epoch, lr, train_loss, the scores of `evaluate`, seconds, images_per_s.

    Raises:
        ValueError: `resume` without `out_dir`, or an unknown `amp`.
        FileNotFoundError: `resume`, but there is nothing to resume from.
    """
    device = setup()
    rank, world = rank_and_world()
    wrapper = PromptedSam(model.to(device), amp, rounds)  # type: ignore[arg-type]
    model = wrapper.sam
    size = wrapper.image_size
    images = Turned(train_set, seed, augment=augment)
    order: DistributedSampler[Any] = DistributedSampler(images, world, rank, seed=seed)
    loader = DataLoader(images, batch_size, sampler=order, collate_fn=collate, num_workers=workers)
    frozen = freeze_unused(wrapper, _first_batch(train_set, size, device))
    trained = filter(lambda parameter: parameter.requires_grad, model.parameters())
    optimizer = optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    history = _resume(out_dir, model, optimizer, scaler) if resume else []
    # DDP comes last: it copies rank 0's weights to the others.
    ddp: nn.Module = DDP(wrapper) if world > 1 else wrapper

    steps = epochs * len(loader)
    rates = [learning_rate(step, steps, lr) for step in range(steps)]
    bar = tqdm(total=steps, disable=rank != 0, file=sys.stdout, mininterval=0.5, ncols=60)
    bar.update(len(history) * len(loader))
    for epoch in range(len(history), epochs):
        start = time.perf_counter()
        order.set_epoch(epoch)  # another order each time
        images.epoch = epoch
        own_rates = rates[epoch * len(loader) :]
        loss = train_epoch(ddp, loader, own_rates, optimizer, scaler, bar, size)
        seconds = time.perf_counter() - start
        row = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"], "train_loss": loss}
        row |= evaluate(model, val_set, batch_size=batch_size, amp=amp)
        history.append(row | {"seconds": seconds, "images_per_s": len(train_set) / seconds})
        if rank == 0:
            bar.clear()
            _report(history[-1], epochs)
            _save(out_dir, model, optimizer, scaler, history)
            if figures_every and (epoch + 1) % figures_every == 0:
                show_predictions(model, train_set, title=f"training, epoch {epoch + 1}")
                show_predictions(model, val_set, title=f"held out, epoch {epoch + 1}")
    bar.close()
    # Before the process group goes: a DDP object that outlives its gloo group can hang the exit.
    del ddp
    thaw(frozen)
    barrier()  # every rank may now read what rank 0 has written
    return history


def _first_batch(dataset: SamDataset, size: int, device: torch.device) -> dict[str, Tensor]:
    """Prepare the first image that has a prompt, or the first image."""
    numbers = range(len(dataset))
    first = next((i for i in numbers if dataset.starts[i] < dataset.starts[i + 1]), 0)
    batch = prepare(collate([dataset[first]]), size, device)
    return batch | square_targets(batch, size)


def _report(row: dict[str, float], epochs: int) -> None:
    """Print one line about an epoch: the loss in training, the scores of the held-out set."""
    print0(
        f"epoch {row['epoch']:2.0f}/{epochs}  loss {row['train_loss']:.3f}  "
        f"Dice {row['dice']:.3f} (5 clicks {row['dice_5']:.3f})  IoU {row['iou']:.3f}  "
        f"wrong prompt {row['wrong_prompt_dice']:.3f}  {row['seconds']:.1f} s"
    )


def show_predictions(
    model: SamModel, dataset: SamDataset, *, title: str = "", rows: int = 4
) -> None:
    """Draw the first images of a set with what the model makes of their clicks.

    Args:
        model: on any device. Only the calling rank works; nothing is collective.
        dataset: what to draw from.
        title: of the figure.
        rows: number of images.
    """
    raw = collate([dataset[i] for i in range(min(rows, len(dataset)))])
    wrapper, training = PromptedSam(model), model.training
    wrapper.eval()
    with torch.no_grad():
        ((logits, _),) = wrapper(prepare(raw, wrapper.image_size, model.device))
    wrapper.train(training)
    masks = torch.zeros_like(raw["masks"])  # (M, H, W)
    for (h, w), at in by_size(raw["sizes"][raw["image_index"]]):
        pred = at_original_size(logits[at.to(logits.device)], (h, w), wrapper.image_size)
        masks[at, :h, :w] = pred.cpu() > 0
    show_results(raw, predictions=masks, title=title, rows=rows)


def _save(
    out_dir: str | Path | None,
    model: SamModel,
    optimizer: optim.Optimizer,
    scaler: torch.amp.GradScaler,
    history: list[dict[str, float]],
) -> None:
    """Write the log, `last`, and `best` if the last row is the best. On rank 0 only."""
    if out_dir is None:
        return
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "history": history}
    _save_model(folder / "last", model, state)
    if history[-1]["dice"] >= max(row["dice"] for row in history):
        _save_model(folder / "best", model, None)
    with (folder / "log.csv.part").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    (folder / "log.csv.part").replace(folder / "log.csv")


def _save_model(folder: Path, model: SamModel, state: dict[str, Any] | None) -> None:
    """Write a checkpoint beside `folder`, then put it in its place: it is never half written."""
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    # A progress bar for each file would tear ours apart.
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(part)
    if shown:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    if state is not None:
        torch.save(state, part / "trainer.pt")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _resume(
    out_dir: str | Path | None,
    model: SamModel,
    optimizer: optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> list[dict[str, float]]:
    """Load `last` into model, optimizer and scaler; return the history so far."""
    if out_dir is None:
        raise ValueError("resume needs an out_dir to resume from")
    last = Path(out_dir) / "last"
    state = torch.load(last / "trainer.pt", map_location=model.device)
    model.load_state_dict(SamModel.from_pretrained(last).state_dict())
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    history: list[dict[str, float]] = state["history"]
    return history
