"""Checkpoints, which transformers can load and training can resume from; and the log."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers.utils import logging

from ddp_magic.sam.adapter import image_processor_config
from ddp_magic.sam.instances import save_decoder
from ddp_magic.sam.process_group import rank_and_world
from ddp_magic.sam.restarts import CALL_FILE
from ddp_magic.sam.tuning import plain_state

History = list[dict[str, float]]
Choices = dict[str, Any]  # arguments of `train` that must not change on resume, by name

# The batches of an epoch depend on these; between epochs they may change.
WITHIN_AN_EPOCH = ("images", "ranks", "batch_size", "accumulate", "seed")


@dataclass
class Position:
    """The progress of training."""

    history: History = field(default_factory=list)  # rows of the completed epochs
    batches: int = 0  # completed in the current epoch, on each rank
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])  # of their losses and objects
    seconds: float = 0.0  # time that they took


class HasState(Protocol):
    """A model, an optimizer, a gradient scaler, or a moving average."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`."""

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Load a state from `state_dict`."""


def _random_states() -> list[dict[str, Any]]:
    """Return the random states of all ranks, by rank. Collective."""
    own = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
    }
    rank, world = rank_and_world()
    states: list[Any] = [own] * world
    if world > 1:
        dist.gather_object(own, states if rank == 0 else None)
    return states


def _set_random_state(states: list[dict[str, Any]]) -> None:
    """Restore the random state of this rank, unless the number of ranks has changed."""
    rank, world = rank_and_world()
    if len(states) != world:
        return
    own = states[rank]
    random.setstate(own["python"])
    np.random.set_state(own["numpy"])
    torch.set_rng_state(own["torch"])
    if own["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])


def save(
    folder: Path,
    parts: Mapping[str, HasState],
    position: Position,
    choices: Choices,
    sam: nn.Module,
    call: str = "",
) -> None:
    """Write `last`: the model, and the state that `load` needs. Collective; rank 0 writes.

    Args:
        folder: folder of the checkpoints.
        parts: the objects whose state is saved, by name.
        position: progress of training.
        choices: arguments that must be the same on resume.
        sam: the model.
        call: the name of the call of `train` (`restarts`).
    """
    states = _random_states()
    if rank_and_world()[0] == 0:
        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        state |= {"position": asdict(position), "choices": choices, "random": states}
        save_model(folder / "last", sam, state, call)
        _write_log(folder, position.history)


def check(folder: Path, choices: Choices) -> None:
    """Check that training can resume from `last` with these choices.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: The checkpoint was written with other choices.
    """
    state = _read(folder, mmap=True)  # mmap: reads only a few bytes of a large file
    between_epochs = not state["position"]["batches"]
    for name, now in choices.items():
        was = state["choices"].get(name, 0)  # missing in older checkpoints: off
        if was != now and not (between_epochs and name in WITHIN_AN_EPOCH):
            raise ValueError(
                f"{folder / 'last'} was trained with {name} = {was!r}, now {now!r}: "
                "resume with the same value, or start a new training in another out_dir"
            )


def load(folder: Path, parts: Mapping[str, HasState]) -> Position:
    """Load `last` into `parts` and set the random state; return the position."""
    state = _read(folder)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    _set_random_state(state["random"])
    return Position(**state["position"])


def _read(folder: Path, *, mmap: bool = False) -> dict[str, Any]:
    path = latest(folder) / "trainer.pt"
    # Written by `save`; weights_only fails for the random states of Python and NumPy.
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False, mmap=mmap)
    return state


def latest(folder: Path) -> Path:
    """Return the latest checkpoint in `folder`, whether it exists or not.

    It is `last`; or `last.old`, if the process was killed while it put a new one in its place.
    """
    last, old = folder / "last", folder / "last.old"
    return old if old.exists() and not last.exists() else last


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
    """Write `log.csv`, and the last row to TensorBoard if it is installed."""
    if not history:
        return
    part = folder / "log.csv.part"
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    part.replace(folder / "log.csv")
    if find_spec("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter

        row = history[-1]
        with SummaryWriter(folder / "tensorboard") as board:
            for name, value in row.items():
                board.add_scalar(name, value, int(row["epoch"]))
