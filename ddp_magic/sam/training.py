"""Fine-tuning SAM: the loop.

The same code runs on one process without a process group and on many ranks. To train otherwise,
copy `train` and change it: what is learned in its loop is in `losses`, what the model is asked in
`prompts`, its forward in `model`.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import Dataset, DistributedSampler
from tqdm.std import tqdm

from ddp_magic.sam import checkpoint
from ddp_magic.sam.adapter import is_frozen, without_fallback
from ddp_magic.sam.auxiliary import PlaceInObject
from ddp_magic.sam.batches import collate, load, prepare
from ddp_magic.sam.data import (
    Item,
    Sampled,
    levels_of,
    may_have_boxes,
    no_prompts,
    pick_objects,
    size_of,
    target_of,
)
from ddp_magic.sam.embeddings import store_embeddings
from ddp_magic.sam.evaluation import (
    CLICKS,
    mean_scores,
    score_objects,
    show_predictions,
    worst_images,
)
from ddp_magic.sam.losses import LOSSES, step_losses
from ddp_magic.sam.model import PromptedSam
from ddp_magic.sam.optimizers import OPTIMIZERS, make_optimizer
from ddp_magic.sam.plots import show_history
from ddp_magic.sam.process_group import all_reduce_sum, barrier, print0, rank_and_world, setup
from ddp_magic.sam.tuning import Averages, choose_trained, find_unused, restore


def train(  # noqa: C901, PLR0912, PLR0913, PLR0915 -- choices with defaults, and one visible loop
    model: nn.Module,
    train_set: Dataset[Item],
    val_set: Dataset[Item],
    *,
    epochs: int = 12,
    batch_size: int = 16,
    lr: float = 3e-3,
    hold: float = 0.0,
    optimizer: str = "adamw",
    tune: str = "full",
    prompts: str | Mapping[str, float] = "points",
    rounds: int | Sequence[int] = 3,
    objects: int = 25,
    multimask: bool | None = None,
    loss: str = "dice+bce",
    auxiliary: float = 0.0,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    accumulate: int = 1,
    ema: float = 0.0,
    amp: str = "fp32",
    patience: int = 0,
    augment: bool = False,
    lora_rank: int = 4,
    compile: bool | str | Callable[..., Any] = False,  # noqa: A002 -- torch's word
    out_dir: str | Path | None = None,
    seed: int = 0,
    workers: int = 0,
    figures_every: int = 0,
    save_every: int = 0,
    resume: bool = False,
) -> list[dict[str, float]]:
    """Fine-tune `model` on prompts, in place.

    Collective: all ranks call it with the same arguments. Rank 0 shows a progress bar, prints a
    row an epoch, and writes to `out_dir`: `log.csv`, and TensorBoard's files if it is installed;
    `best` (by held-out Dice) and `last`, which `from_pretrained` reads; `last/trainer.pt`, from
    which `resume` goes on. If the encoder is frozen, each image is encoded once, and the
    embeddings kept in `out_dir/embeddings`, or in a temporary folder.

    Args:
        model: SamModel, SamHQModel, Sam2Model or Sam3TrackerModel, the same on all ranks; moved to
            this rank's device. What is frozen beforehand stays so.
        train_set: a `SamDataset`, torch's subset of one (`random_split`), or any set of such items;
            the same on all ranks. The model's config notes its gray levels, for `predict`.
        val_set: likewise.
        epochs: times through the training set, those before `resume` included.
        batch_size: images a rank and batch.
        lr: highest learning rate; 3e-3 suits `tiny_sam()`, 1e-5 to 1e-4 pretrained weights.
        hold: share of the steps in which the learning rate stays there, before it falls along a
            cosine. 0: it falls from the beginning, right after its warm-up. Most of what a model
            learns from random weights it learns at the highest rate.
        optimizer: "adamw"; or "muon", by which a model may learn from random weights in far fewer
            steps, `tiny_sam()` at 5e-3.
        tune: "full"; "decoder", the mask decoder only; "lora", that and low-rank additions to the
            encoder's attention, which end up in its weights.
        prompts: an object's first prompt: "points", the set's own clicks and boxes, or else a click
            on it; "boxes", around it; "masks", a rough one; "none"; or shares of these, such as
            {"points": 0.5, "boxes": 0.5}.
        rounds: of prompts: the first one, then each time one click more where the mask is wrong.
            With 1 the model is trained for its first prompt, and gets worse by further ones. Or one
            number an epoch, the last one for all that follow: (1, 1, 3) begins with what is cheap.
        objects: the most of an image in a batch; of more, others are drawn in each epoch. 0: all.
            They take memory: with a SAM at 1024 pixels each 0.1 GB a round.
        multimask: whether a single click gets three masks, of which the best one counts. Noted in
            the model's config, so that `evaluate`, `predict` and `segment` ask for the same. None:
            as noted there, else three. transformers' mask-generation pipeline always takes three,
            of which a model trained with False knows nothing: use `segment`. Nor does a trained
            SAM 2 or 3 put one of three in the place of a single mask that wavers any more.
        loss: "dice+bce" or "dice+focal".
        auxiliary: weight of a second task, such as 1: a linear layer, thrown away afterwards, tells
            from the embeddings alone where in its object each pixel lies. It teaches an encoder
            with random weights to tell touching objects apart. Where objects overlap, its answers
            contradict. 0: none.
        weight_decay: AdamW's. Beware: it shrinks the parts that a single mask does not use.
        clip: longest gradient; 0: any.
        accumulate: batches a step.
        ema: share of the running average of the weights that a step keeps, such as 0.99. The
            average is what is scored, saved as `best`, and left in `model`. 0: no average.
        amp: "fp32", "bf16", or "fp16" with gradient scaling.
        patience: stop after so many epochs without a better held-out Dice; 0: never.
        augment: mirror and turn the training images by quarters, anew in each epoch; right where
            up and down mean nothing, as under a microscope.
        lora_rank: of the additions.
        compile: compile the image encoder, where it is not frozen, by torch.compile; or torch's
            name of a backend, or one. It takes a minute, and pays for large encoders on GPUs.
        out_dir: folder for checkpoints and log; None: nothing is written.
        seed: of the order of the images, of clicks and boxes.
        workers: processes a rank that load images.
        figures_every: draw curves and the worst held-out images every so many epochs; 0: never.
        save_every: write `last` every so many steps too, not only after an epoch.
        resume: go on from `out_dir/last`, as if never interrupted; with the same `tune`,
            `optimizer`, `auxiliary`, `amp` and `ema`, and within an epoch the same batches and
            ranks.

    Returns:
        A row an epoch: epoch, lr, train_loss (with the auxiliary task's, times its weight), the
        scores of `evaluate`, seconds, images_per_s, and data_wait, the share of the time in which
        rank 0 waited for images.

    Raises:
        ValueError: `resume` without `out_dir` or with other choices, `augment` or `auxiliary` with
            a frozen encoder, an unknown word, a number out of range, or nothing to train on.
        FileNotFoundError: `resume`, but there is nothing to resume from.
        TypeError: A model of another family, or what is no data set.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is one of {', '.join(LOSSES)}, not {loss!r}")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is one of {', '.join(OPTIMIZERS)}, not {optimizer!r}")
    each_rounds = [rounds] if isinstance(rounds, int) else list(rounds)
    if min(each_rounds, default=0) < 1:
        raise ValueError(f"rounds is a number from 1 on, or one an epoch, not {rounds!r}")
    if min(batch_size, accumulate, objects + 1) < 1 or not 0 <= ema < 1 or not 0 <= hold <= 1:
        raise ValueError(
            "batch_size and accumulate are from 1 on, objects from 0 on, ema is a share below 1, "
            "hold one up to 1"
        )
    if auxiliary < 0:
        raise ValueError(f"auxiliary is a weight from 0 on, not {auxiliary!r}")
    size, held_out = size_of(train_set, "train_set"), size_of(val_set, "val_set")
    if not size:
        raise ValueError("train_set has no images")
    shown = _first_with_objects(train_set)
    if resume and out_dir is None:
        raise ValueError("resume needs an out_dir to resume from")
    folder = None if out_dir is None else Path(out_dir)
    device = setup()
    rank, world = rank_and_world()
    levels, other = levels_of(train_set), levels_of(val_set) if held_out else None
    if levels and other and other != levels:
        print0(
            "val_set's gray levels are not train_set's: SamDataset(..., window=train_set.window)"
        )
    choices = {"tune": tune, "optimizer": optimizer, "amp": amp, "ema": ema, "auxiliary": auxiliary}
    choices |= {"lora_rank": lora_rank} if tune == "lora" else {}
    choices |= {"images": size, "ranks": world, "batch_size": batch_size}
    choices |= {"accumulate": accumulate, "seed": seed}
    if resume and folder:
        checkpoint.check(folder, choices)
    wrapper = PromptedSam(model.to(device), amp, max(each_rounds), prompts, multimask=multimask)
    sam = wrapper.sam
    with ExitStack() as at_end:
        at_end.enter_context(warnings.catch_warnings())  # of 1 x 1 convolutions, whose
        warnings.filterwarnings("ignore", "Grad strides do not match")  # strides mean nothing
        frozen = choose_trained(sam, tune, lora_rank)
        at_end.callback(restore, sam, frozen)
        train_images, val_images = train_set, val_set
        if is_frozen(sam):
            if augment:
                raise ValueError(
                    "augment turns images, but the encoder is frozen and each image is encoded "
                    "only once: leave augment out, or train the encoder (tune='lora' or 'full')"
                )
            if auxiliary:
                raise ValueError(
                    "auxiliary teaches the encoder, which is frozen: leave it out, or train the "
                    "encoder (tune='lora' or 'full')"
                )
            stored = folder / "embeddings" if folder else at_end.enter_context(_shared_folder())
            train_images, val_images = (
                store_embeddings(wrapper, images, stored / name, workers=workers)
                for name, images in (("train", train_set), ("val", val_set))
            )
        elif compile:
            backend = "inductor" if compile is True else compile
            sam.vision_encoder.compile(backend=backend)
            at_end.callback(setattr, sam.vision_encoder, "_compiled_call_impl", None)
        images = Sampled(train_images, seed, objects=objects, augment=augment)
        order: DistributedSampler[Any] = DistributedSampler(images, world, rank, seed=seed)
        one_of_each = _one_of_each(images[shown], train_set, wrapper, device)
        frozen += find_unused(wrapper.train(), one_of_each, each_rounds)
        if auxiliary:
            channels = sam.config.prompt_encoder_config.hidden_size
            wrapper.auxiliary = PlaceInObject(channels, auxiliary).to(device)
        first = _most_common(wrapper.shares)
        scorer = PromptedSam(sam, amp, max(CLICKS), first, multimask=wrapper.multimask)
        trained = [p for p in wrapper.parameters() if p.requires_grad]
        descent = make_optimizer(optimizer, wrapper, lr, weight_decay)
        scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        # DDP copies rank 0's weights to the others; what has a state is loaded after that.
        ddp: nn.Module = DDP(wrapper) if world > 1 else wrapper
        averages = Averages(trained, ema)
        parts = {"model": sam, "optimizer": descent, "scaler": scaler, "averages": averages}
        parts |= {"auxiliary": wrapper.auxiliary} if wrapper.auxiliary else {}
        position = checkpoint.load(folder, parts) if resume and folder else checkpoint.Position()
        history = position.history
        begun = len(history)
        sam.config.multimask_output = wrapper.multimask  # only now: what was refused notes nothing
        sam.config.gray_levels = levels
        without_fallback(sam)

        batches = -(-len(order) // batch_size)
        steps = -(-batches // accumulate)
        bar = tqdm(
            total=epochs * batches, disable=rank != 0, file=sys.stdout, mininterval=0.5, ncols=60
        )
        at_end.callback(bar.close)  # after an error too: what is printed next has its own line
        for epoch in range(begun, epochs):
            if is_stuck(history, patience):
                print0(f"no better held-out Dice in {patience} epochs: stopped")
                break
            order.set_epoch(epoch)  # another order each time
            images.epoch = epoch
            wrapper.rounds = each_rounds[min(epoch, len(each_rounds) - 1)]
            rest = list(order)[position.batches * batch_size :]
            # Losses and objects of this rank; those from before an interruption are all rank 0's.
            sums = torch.tensor(position.sums, dtype=torch.float64, device=device) * (rank == 0)
            step_objects = torch.zeros(1, device=device)
            start = time.perf_counter() - position.seconds
            waited, asked = 0.0, time.perf_counter()
            ddp.train()
            loader = load(images, rest, batch_size, workers, device, seed * 10_000 + epoch)
            for number, raw in enumerate(loader, start=position.batches + 1):
                waited += time.perf_counter() - asked
                is_step = number % accumulate == 0 or number == batches
                batch = prepare(raw, wrapper.geometry, device)
                with nullcontext() if is_step or world == 1 else ddp.no_sync():  # type: ignore[operator]
                    losses = step_losses(ddp, batch, loss)  # (M,)
                    # DDP averages over ranks; times world this is the sum over all their objects.
                    scaler.scale(losses.sum() * world).backward()  # type: ignore[no-untyped-call]
                sums[0] += losses.detach().sum()
                sums[1] += len(losses)
                step_objects += len(losses)
                if is_step:
                    # The mean over *objects*, of which batches and ranks have unequal numbers.
                    in_step = all_reduce_sum(step_objects).clamp(min=1)
                    scaler.unscale_(descent)
                    for parameter in trained:
                        if parameter.grad is not None:
                            parameter.grad.div_(in_step)
                    if clip:
                        nn.utils.clip_grad_norm_(trained, clip)
                    step = (number - 1) // accumulate  # of this epoch, from 0
                    rate = learning_rate(epoch * steps + step, epochs * steps, lr, hold)
                    for group in descent.param_groups:
                        group["lr"] = rate
                    scaler.step(descent)
                    scaler.update()
                    descent.zero_grad(set_to_none=True)
                    averages.update()
                    step_objects.zero_()
                    if folder and save_every and (step + 1) % save_every == 0:
                        total = all_reduce_sum(sums.clone()).tolist()
                        seconds = time.perf_counter() - start
                        here = checkpoint.Position(history, number, total, seconds)
                        checkpoint.save(folder, parts, here, choices, sam)
                bar.update(epoch * batches + number - bar.n)
                asked = time.perf_counter()
            seconds = time.perf_counter() - start
            total_loss, objects_seen = all_reduce_sum(sums).tolist()
            with averages.in_place():
                table = score_objects(scorer, val_images, batch_size=batch_size, workers=workers)
                history.append(
                    {
                        "epoch": epoch + 1,
                        "lr": descent.param_groups[0]["lr"],
                        "train_loss": total_loss / max(objects_seen, 1),
                        **mean_scores(table),
                        "seconds": seconds,
                        "images_per_s": size / seconds,
                        "data_wait": waited / seconds,
                    }
                )
                if rank == 0:
                    bar.clear()
                    report(history, epochs, header=epoch == begun)
                    # Where nothing is held out, Dice is NaN, less than no other: the last is best.
                    if folder and not history[-1]["dice"] < max(row["dice"] for row in history):
                        checkpoint.save_model(folder / "best", sam)
            position = checkpoint.Position(history)
            if folder:
                checkpoint.save(folder, parts, position, choices, sam)
            if rank == 0 and figures_every and (epoch + 1) % figures_every == 0:
                show_history(history)
                title, worst = f"worst held-out images, epoch {epoch + 1}", worst_images(table)
                with averages.in_place():
                    show_predictions(sam, val_set, worst, title=title, prompts=first)
        # Now: a DDP object that outlives its gloo group can hang the exit.
        del ddp
        averages.adopt()
    barrier()  # every rank may now read what rank 0 has written
    return history


def learning_rate(step: int, steps: int, peak: float, hold: float = 0.0) -> float:
    """Rise in the first 5 % of the steps, stay up to the share `hold`, then fall along a cosine."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    start = max(warm, round(hold * steps))
    fallen = max(0, step - start) / max(1, steps - start)
    return peak * 0.5 * (1 + math.cos(math.pi * fallen))


def is_stuck(history: list[dict[str, float]], patience: int) -> bool:
    """Return whether the last `patience` epochs brought no better held-out Dice; 0: never."""
    dice = [row["dice"] for row in history]
    return 0 < patience < len(dice) and max(dice[-patience:]) <= max(dice[:-patience])


def report(history: list[dict[str, float]], epochs: int, *, header: bool) -> None:
    """Print the last epoch's row, and perhaps the columns' names above it."""
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


def _most_common(shares: dict[str, float]) -> str:
    """Return the kind of first prompt to score with: "points" if they are trained."""
    return "points" if "points" in shares else max(shares, key=lambda kind: shares[kind])


def _first_with_objects(train_set: Dataset[Item]) -> int:
    """Return the number of the first image that asks for an object.

    Raises:
        ValueError: None does.
    """
    for number in range(size_of(train_set)):
        if len(target_of(train_set, number)["keys"]):
            return number
    raise ValueError("train_set asks for no object: its masks or its coordinates are empty")


def _one_of_each(
    item: Item, train_set: Dataset[Item], wrapper: PromptedSam, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Prepare an item's first object for each kind of first prompt that training will meet."""
    one = pick_objects(item, torch.tensor([0])) | no_prompts(1)
    batch = prepare(collate([one]), wrapper.geometry, device)
    kinds = dict.fromkeys(wrapper.shares, batch)
    if "points" in kinds and may_have_boxes(train_set):  # the set's own
        kinds["boxes"] = batch
    return kinds


@contextmanager
def _shared_folder() -> Iterator[Path]:
    """Make a folder for all ranks, and remove it in the end."""
    rank, world = rank_and_world()
    made = [tempfile.mkdtemp(prefix="sam-embeddings-") if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(made, src=0)
    try:
        yield Path(str(made[0]))
    finally:
        if rank == 0:
            shutil.rmtree(str(made[0]), ignore_errors=True)
