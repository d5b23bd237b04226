"""Checkpoints, which transformers can load and training can resume from; and the log."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers.utils import logging

from ddp_magic.sam.arguments import check_flags
from ddp_magic.sam.arrays.items import Item
from ddp_magic.sam.data.access import (
    common_levels,
    has_objects,
    shared_images,
    summary_of,
    training_size,
)
from ddp_magic.sam.models.adapter import image_processor_config, is_frozen, without_fallback
from ddp_magic.sam.models.instances import attach_decoder, save_decoder
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.tuning import plain_state
from ddp_magic.sam.process_group import check_same, first_rank, print0, rank_and_world
from ddp_magic.sam.training.out_dir import CALL_FILE, claim, latest

History = list[dict[str, float]]  # a row per epoch

# What a checkpoint holds, by name: objects with `state_dict`; `model` is a `PromptedSam`.
Parts = dict[str, Any]


def begin(
    folder: Path | None, parts: Parts, epochs: int, *, resume: bool, overwrite: bool
) -> tuple[History, str]:
    """Prepare a folder for the checkpoints, if there is one; see `claim`. Collective.

    Returns:
        The history of the training that goes on, whose state is loaded into `parts`, or an empty
        one; and the name of this call.

    Raises:
        ValueError: `resume` contradicts the other arguments.
    """
    check_flags(resume=resume, overwrite=overwrite)
    if resume and folder is None:
        raise ValueError("resume=True needs out_dir, the folder with the checkpoint to resume from")
    if resume and overwrite:
        raise ValueError(
            "resume=True goes on from the checkpoints in out_dir, and overwrite=True replaces "
            "them: use one of the two"
        )
    if folder is None:
        return [], ""
    goes_on, call = first_rank(lambda: claim(folder, parts["model"], resume, overwrite))
    history = load(folder, parts) if goes_on else []
    if len(history) >= epochs:
        print0(f"{folder} has {len(history)} epochs already: nothing is trained; use more epochs")
    return history, call


def save(folder: Path | None, parts: Parts, history: History, call: str = "") -> None:
    """Write `last`, `best` if the last epoch is the best one, and the log, on rank 0.

    Args:
        folder: folder of the checkpoints; None: nothing is written.
        parts: the objects whose state is saved, by name.
        history: rows of the epochs.
        call: the name of the call of `train`.
    """
    if folder is None or rank_and_world()[0] > 0:
        return
    model = parts["model"]
    if is_best(history) or not (folder / "best").exists():
        save_model(folder / "best", model.sam)
    state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
    state |= {"history": history, "choices": _choices(parts), "settings": _settings(parts)}
    save_model(folder / "last", model.sam, state, call)
    _write_log(folder, history)


def load(folder: Path, parts: Parts) -> History:
    """Load `last` into `parts`, and return the history; print a line for other data.

    Raises:
        ValueError: The checkpoint is of another architecture, or of another kind of training, or
            it cannot be read.
    """
    last = latest(folder)
    try:  # written by `save`; weights_only would refuse what an optimizer of the user may hold
        state = torch.load(last / "trainer.pt", map_location="cpu", weights_only=False)
        data = json.loads((last / "config.json").read_text()).get("training_data", {})
    except Exception as error:  # torch.load raises what it meets
        raise ValueError(f"{last} is damaged ({error}): train with overwrite=True") from error
    _check_shapes(last, state["model"], parts["model"].state_dict())
    for name, now in _choices(parts).items():
        if (was := state["choices"][name]) != now:
            raise ValueError(
                f"{last} was trained with {name} {was}, now {now}: resume with the same, or start "
                "a new training in another out_dir"
            )
    for name, now in _settings(parts).items():
        if (was := state.get("settings", {}).get(name, now)) != now:
            print0(f"{last} was trained with {name} {was}, now {now}")
    for name, summary in parts["model"].sam.config.training_data.items():
        if (before := data.get(name, summary)) != summary:
            print0(
                f"{last} is of a training with another {name}: {before}; now {summary}. "
                "Its scores are not those of one training; for a new one, use another out_dir"
            )
    for name, part in parts.items():
        part.load_state_dict(state[name])
    history: History = state["history"]
    return history


def note_config(wrapper: PromptedSam, train_set: Dataset[Item], val_set: Dataset[Item]) -> None:
    """Note in the config of a model how it is trained, for `evaluate`, `predict` and `segment`.

    Collective.

    Raises:
        ValueError: The ranks have different data sets.
    """
    wrapper.sam.config.multimask_output = wrapper.multimask
    wrapper.sam.config.gray_levels = common_levels(train_set, val_set)
    wrapper.sam.config.training_size = training_size(train_set)
    ours, theirs = summary_of(train_set), summary_of(val_set)
    check_same("train_set or val_set", (ours, theirs), "read the same files, in the same order")
    wrapper.sam.config.training_data = {"train_set": ours, "val_set": theirs}
    if not has_objects(val_set):
        print0("val_set has no objects: there are no scores, and `best` is the last epoch")
    shared = shared_images(train_set, val_set)
    if shared or (ours == theirs and "digest" in ours):
        what = f"{shared or 'all'} images of val_set are in train_set too"
        print0(f"{what}: its scores are not those of held-out objects")
    if wrapper.auxiliary or not is_frozen(wrapper.sam):  # a frozen one keeps the decoder it has
        attach_decoder(wrapper.sam, wrapper.auxiliary)
    without_fallback(wrapper.sam)


def _choices(parts: Parts) -> dict[str, Any]:
    """Return what must be the same on resume."""
    model = parts["model"]
    trained = sum(p.requires_grad for p in model.parameters())
    kinds = {name: type(part).__name__ for name, part in parts.items() if name != "model"}
    return {**kinds, "amp": model.amp, "number of trained parameters": trained}


def _settings(parts: Parts) -> dict[str, Any]:
    """Return what may differ on resume, and is told then; the learning rate stays as it was."""
    model, rate = parts["model"], getattr(parts.get("optimizer"), "defaults", {}).get("lr")
    same = {"prompts": model.shares, "rounds": model.rounds, "multimask": model.multimask}
    return same | {"a learning rate (which goes on) of": rate}


def _check_shapes(last: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a checkpoint has the parameters of the model.

    Raises:
        ValueError: It has not.
    """
    there, here = ({name: tuple(x.shape) for name, x in each.items()} for each in (was, now))
    differ = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    if differ:
        name = differ[0]
        raise ValueError(
            f"{last} is of another architecture: {len(differ)} of {len(here)} parameters differ.\n"
            f"{name} is {there.get(name, 'missing')} there, {here.get(name, 'missing')} here.\n"
            f"Resume with the same model, or start a new training in another out_dir."
        )


def is_best(history: History) -> bool:
    """Return whether the last epoch has the highest held-out Dice so far.

    Without held-out objects Dice is NaN, and the last epoch is always the best.
    """
    return not history[-1]["dice"] < max(row["dice"] for row in history)


def save_model(
    folder: Path, sam: nn.Module, state: dict[str, Any] | None = None, call: str = ""
) -> None:
    """Write a checkpoint next to `folder`, then rename it, so that it is always complete.

    It includes the configuration of the image processor, for the pipelines of transformers.
    """
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    for leftover in (part, old) if folder.exists() else (part,):
        shutil.rmtree(leftover, ignore_errors=True)
    # The progress bar of transformers would interrupt that of training.
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = sam
    model.save_pretrained(part, state_dict=plain_state(sam))
    save_decoder(part, sam)
    config = json.dumps(image_processor_config(model), indent=2)
    (part / "preprocessor_config.json").write_text(config + "\n")
    if shown:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    if state is not None:
        torch.save(state, part / "trainer.pt")
    if call:
        (part / CALL_FILE).write_text(call)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_log(folder: Path, history: History) -> None:
    """Write `log.csv`."""
    part = folder / "log.csv.part"
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    part.replace(folder / "log.csv")
