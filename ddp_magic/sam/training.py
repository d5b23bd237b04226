"""The training loop.

It runs in one process without a process group, or on many ranks. To change the training, copy
`train`: the losses are in `losses`, the prompts in `prompts`, and the forward pass in `model`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import Dataset, DistributedSampler

from ddp_magic.sam import checkpoint
from ddp_magic.sam.adapter import check_frozen, is_frozen, without_fallback
from ddp_magic.sam.arguments import check_choice, check_fraction, check_minimum, rounds_per_epoch
from ddp_magic.sam.batches import load, prepare
from ddp_magic.sam.dataset_access import common_levels, first_with_objects, size_of
from ddp_magic.sam.dry_run import find_unused, one_of_each
from ddp_magic.sam.embeddings import shared_folder, store_embeddings
from ddp_magic.sam.evaluation import CLICKS, score_objects
from ddp_magic.sam.instances import attach_decoder, instance_decoder
from ddp_magic.sam.items import Item
from ddp_magic.sam.losses import LOSSES, step_losses
from ddp_magic.sam.model import PromptedSam
from ddp_magic.sam.optimizers import OPTIMIZERS, learning_rate, make_optimizer
from ddp_magic.sam.process_group import all_reduce_sum, barrier, print0, rank_and_world, setup
from ddp_magic.sam.progress import epoch_row, is_best, is_stuck, progress_bar, report, show_progress
from ddp_magic.sam.prompts import most_common
from ddp_magic.sam.restarts import is_interrupted, name_call
from ddp_magic.sam.sampling import Sampled
from ddp_magic.sam.tiles import training_size
from ddp_magic.sam.tuning import Averages, choose_trained, restore


def train(  # noqa: C901, PLR0912, PLR0913, PLR0915 -- many options, and one visible loop
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
    """Fine-tune `model` in place on prompts.

    This is a collective: all ranks must call it with the same arguments. Rank 0 shows a progress
    bar, prints one row per epoch, and writes to `out_dir`:

    - `log.csv`, and TensorBoard files if TensorBoard is installed;
    - `best`, the checkpoint with the highest held-out Dice, and `last`, the latest one, both for
      `from_pretrained`;
    - `last/trainer.pt`, the state that `resume` needs;
    - `embeddings`, if the encoder is frozen: each image is encoded once. Without `out_dir`, they
      are stored in a temporary folder.

    Args:
        model: a SamModel, SamHQModel, Sam2Model or Sam3TrackerModel with the same weights on all
            ranks. It is moved to the rank's device. Parameters that are already frozen stay frozen.
        train_set: a `SamDataset`, a torch `Subset` of one (as `random_split` returns), or any data
            set with such items; the same on all ranks. Its gray levels are stored in the config of
            the model, for `predict`.
        val_set: the held-out data set, of the same kinds.
        epochs: total number of epochs, including those before `resume`.
        batch_size: number of images per rank and batch.
        lr: peak learning rate. 3e-3 suits `tiny_sam()`, 1e-5 to 1e-4 pretrained weights.
        hold: fraction of the steps after which the learning rate starts to decay along a cosine.
            0: right after the warm-up. From random weights, most progress is at the peak rate.
        optimizer: "adamw" or "muon". From random weights, Muon may need far fewer steps, for
            example `tiny_sam()` at 5e-3.
        tune: the parameters to train. "full": all; "decoder": the mask decoder; "lora": the mask
            decoder and low-rank updates of the encoder's attention, which are merged into its
            weights at the end.
        prompts: the first prompt of an object. "points": the clicks and boxes of the data set, or
            a click on the object if there are none; "boxes": a box around it; "masks": a rough
            mask; "none": no prompt; or a mixture, such as {"points": 0.5, "boxes": 0.5}.
        rounds: number of prompts per object: the first prompt, then one click per round where the
            predicted mask is wrong. A model trained with 1 gets worse with further clicks. A
            sequence gives one number per epoch, and the last one holds for the remaining epochs:
            (1, 1, 3) starts with the cheap rounds.
        objects: maximum number of objects per image and batch, sampled again in each epoch; 0:
            no maximum. An object takes 0.1 GB of memory per round with a SAM at 1024 pixels.
        multimask: whether the model predicts three masks for a single click, of which only the best
            one is trained. The choice is stored in the config of the model, and `evaluate`,
            `predict` and `segment` use it. None: the stored choice, or True if there is none. After
            training with False, use `segment` instead of the mask-generation pipeline of
            transformers, which always uses three masks.
        loss: "dice+bce" or "dice+focal".
        auxiliary: weight of the decoder of instances, such as 1; 0: none. It learns from the image
            embeddings alone which pixels belong to an object, and where in its object each is, so
            that `segment` need not click on a grid; and it helps an encoder with random weights to
            separate touching objects. The masks must contain every object of an image. Do not use
            it for overlapping objects.
        weight_decay: weight decay of the optimizer. It also shrinks the parameters that a single
            mask does not use.
        clip: maximum norm of the gradient; 0: no clipping.
        accumulate: number of batches per optimizer step.
        ema: decay of the exponential moving average of the weights, such as 0.99. The average is
            evaluated, saved as `best`, and left in `model`. 0: no average.
        amp: "fp32", "bf16", or "fp16" with gradient scaling.
        patience: number of epochs without a higher held-out Dice after which training stops; 0:
            never.
        augment: whether to flip the training images and rotate them by multiples of 90 degrees,
            differently in each epoch. Use it if the orientation has no meaning, as in microscopy.
        lora_rank: rank of the low-rank updates.
        compile: whether to compile the image encoder with torch.compile, unless it is frozen; or
            the backend to use, by name or as a function. For large encoders on GPUs: compiling
            takes about a minute.
        out_dir: folder for checkpoints and logs; None: nothing is written.
        seed: seed for the order of the images, the clicks and the boxes.
        workers: number of data loading processes per rank.
        figures_every: number of epochs between figures of the learning curves and the worst
            held-out images; 0: none.
        save_every: number of steps between checkpoints `last`, in addition to the one after each
            epoch; 0: none.
        resume: whether to continue from `out_dir/last`, with the same result as without the
            interruption. `tune`, `optimizer`, `auxiliary`, `amp` and `ema` must be the same; within
            an epoch, the batches and the number of ranks too. After a restart by torch's agent
            (`--max-restarts`), a call with `out_dir` continues from its own `last` without it.

    Returns:
        One row per epoch: epoch, lr, train_loss (with the weighted auxiliary loss), the scores of
        `evaluate`, seconds, images_per_s, data_wait (fraction of the time waiting for images).

    Raises:
        ValueError: `resume` is used without `out_dir` or with other choices, `augment`
            with a frozen encoder; an argument has an invalid value; or the training set
            has no objects.
        FileNotFoundError: There is no checkpoint to resume from.
        TypeError: `model` is not of the SAM family, or an argument is not a data set.
    """
    check_choice("loss", loss, LOSSES)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_minimum(1, batch_size=batch_size, accumulate=accumulate)
    check_minimum(0, objects=objects, auxiliary=auxiliary)
    check_fraction("ema", ema, one_allowed=False)
    check_fraction("hold", hold)
    each_rounds = rounds_per_epoch(rounds)
    size, _ = size_of(train_set, "train_set"), size_of(val_set, "val_set")
    example = first_with_objects(train_set)
    if resume and out_dir is None:
        raise ValueError("resume=True needs out_dir, the folder with the checkpoint to resume from")
    folder = None if out_dir is None else Path(out_dir)
    device = setup()
    rank, world = rank_and_world()
    levels = common_levels(train_set, val_set)
    choices = {"tune": tune, "optimizer": optimizer, "amp": amp, "ema": ema, "auxiliary": auxiliary}
    choices |= {"lora_rank": lora_rank} if tune == "lora" else {}
    choices |= {"images": size, "ranks": world, "batch_size": batch_size}
    choices |= {"accumulate": accumulate, "seed": seed}
    call = name_call(folder)
    resume = resume or (folder is not None and is_interrupted(checkpoint.latest(folder), call))
    if resume and folder:
        checkpoint.check(folder, choices)
    wrapper = PromptedSam(model.to(device), amp, max(each_rounds), prompts, multimask=multimask)
    sam = wrapper.sam
    with ExitStack() as at_end:
        # DDP warns about the gradient strides of 1 x 1 convolutions, which do not matter.
        at_end.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Grad strides do not match")
        frozen = choose_trained(sam, tune, lora_rank)
        at_end.callback(restore, sam, frozen)
        train_images, val_images = train_set, val_set
        if is_frozen(sam):
            check_frozen(augment=augment)
            stored = folder / "embeddings" if folder else at_end.enter_context(shared_folder())
            train_images, val_images = (
                store_embeddings(wrapper, images, stored / name, workers=workers)
                for name, images in (("train", train_set), ("val", val_set))
            )
        elif compile:
            backend = "inductor" if compile is True else compile
            sam.vision_encoder.compile(backend=backend)
            at_end.callback(setattr, sam.vision_encoder, "_compiled_call_impl", None)
        images = Sampled(train_images, seed, objects=objects, augment=augment)
        sampler: DistributedSampler[Any] = DistributedSampler(images, world, rank, seed=seed)
        dry_batches = one_of_each(images[example], train_set, wrapper, device)
        frozen += find_unused(wrapper.train(), dry_batches, each_rounds)
        if auxiliary:
            wrapper.auxiliary = instance_decoder(sam, auxiliary).to(device)
        if auxiliary or not is_frozen(sam):  # a frozen encoder keeps the decoder that it has
            attach_decoder(sam, wrapper.auxiliary)
        first_prompt = most_common(wrapper.shares)
        scorer = PromptedSam(sam, amp, max(CLICKS), first_prompt, multimask=wrapper.multimask)
        trained = [p for p in wrapper.parameters() if p.requires_grad]
        opt = make_optimizer(optimizer, wrapper, lr, weight_decay)
        scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        # DDP broadcasts the weights of rank 0, so the states are loaded after it.
        ddp: nn.Module = DDP(wrapper) if world > 1 else wrapper
        averages = Averages(trained, ema)
        parts = {"model": sam, "optimizer": opt, "scaler": scaler, "averages": averages}
        parts |= {"auxiliary": wrapper.auxiliary} if wrapper.auxiliary else {}
        position = checkpoint.load(folder, parts) if resume and folder else checkpoint.Position()
        history, first_epoch = position.history, len(position.history)
        # After all checks, so that a failed call does not change the config.
        sam.config.multimask_output = wrapper.multimask
        sam.config.gray_levels = levels
        sam.config.training_size = training_size(train_set)
        without_fallback(sam)

        batches = -(-len(sampler) // batch_size)
        steps = -(-batches // accumulate)
        bar = progress_bar(epochs * batches)
        at_end.callback(bar.close)  # also after an error, so that the next output starts a new line
        for epoch in range(first_epoch, epochs):
            if is_stuck(history, patience):
                print0(f"stopped: held-out Dice has not improved in {patience} epochs")
                break
            sampler.set_epoch(epoch)  # shuffles differently in each epoch
            images.epoch = epoch
            wrapper.rounds = each_rounds[min(epoch, len(each_rounds) - 1)]
            rest = list(sampler)[position.batches * batch_size :]
            # Sum of losses, number of objects; rank 0 starts from those before `resume`.
            sums = torch.tensor(position.sums, dtype=torch.float64, device=device) * (rank == 0)
            step_objects = torch.zeros(1, device=device)
            start = time.perf_counter() - position.seconds
            waited_s, requested = 0.0, time.perf_counter()
            ddp.train()
            loader = load(images, rest, batch_size, workers, device, seed * 10_000 + epoch)
            for number, raw in enumerate(loader, start=position.batches + 1):
                waited_s += time.perf_counter() - requested
                is_step = number % accumulate == 0 or number == batches
                batch = prepare(raw, wrapper.geometry, device)
                with nullcontext() if is_step or world == 1 else ddp.no_sync():  # type: ignore[operator]
                    losses = step_losses(ddp, batch, loss)  # (M,)
                    # DDP averages over ranks; times world, this is the sum over all objects.
                    scaler.scale(losses.sum() * world).backward()  # type: ignore[no-untyped-call]
                sums[0] += losses.detach().sum()
                sums[1] += len(losses)
                step_objects += len(losses)
                if is_step:
                    # Mean over all *objects*: batches and ranks have different numbers of them.
                    objects_in_step = all_reduce_sum(step_objects).clamp(min=1)
                    scaler.unscale_(opt)
                    for parameter in trained:
                        if parameter.grad is not None:
                            parameter.grad.div_(objects_in_step)
                    if clip:
                        nn.utils.clip_grad_norm_(trained, clip)
                    step = (number - 1) // accumulate  # of this epoch, from 0
                    rate = learning_rate(epoch * steps + step, epochs * steps, lr, hold)
                    for group in opt.param_groups:
                        group["lr"] = rate
                    scaler.step(opt)
                    scaler.update()
                    opt.zero_grad(set_to_none=True)
                    averages.update()
                    step_objects.zero_()
                    if folder and save_every and (step + 1) % save_every == 0:
                        total, spent_s = all_reduce_sum(sums.clone()), time.perf_counter() - start
                        here = checkpoint.Position(history, number, total.tolist(), spent_s)
                        checkpoint.save(folder, parts, here, choices, sam, call)
                bar.update(epoch * batches + number - bar.n)
                requested = time.perf_counter()
            seconds = time.perf_counter() - start
            total_loss, objects_seen = all_reduce_sum(sums).tolist()
            mean_loss = total_loss / max(objects_seen, 1)
            with averages.in_place():
                table = score_objects(scorer, val_images, batch_size=batch_size, workers=workers)
                rate = opt.param_groups[0]["lr"]
                history.append(epoch_row(epoch, rate, mean_loss, table, size, seconds, waited_s))
                if rank == 0:
                    bar.clear()
                    report(history, epochs, header=epoch == first_epoch)
                    if folder and is_best(history):
                        checkpoint.save_model(folder / "best", sam)
            position = checkpoint.Position(history)
            if folder:
                checkpoint.save(folder, parts, position, choices, sam, call)
            if rank == 0 and figures_every and (epoch + 1) % figures_every == 0:
                with averages.in_place():
                    show_progress(history, table, sam, val_set, first_prompt)
        # A DDP object that outlives its gloo group can hang the process at exit.
        del ddp
        averages.adopt()
    barrier()  # after this, every rank can read what rank 0 has written
    return history
