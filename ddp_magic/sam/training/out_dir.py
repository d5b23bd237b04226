"""The folder that training writes to: whether it may, and which call of `train` wrote there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from torch import nn

from ddp_magic.sam.process_group import print0

# Which call of `train` wrote a checkpoint: torch's elastic agent (`torchrun --max-restarts`, `%%ddp
# --max-restarts`) runs a program again from its first line. `train` then goes on from the
# checkpoint of the same call, and only from that one: one of an earlier program, or of another call
# with the same folder, may be of another model.
CALL_FILE = "call.txt"  # in the folder of a checkpoint: which call wrote it
_calls: Counter[Path] = Counter()  # of `train` in this process, by folder


def name_call(folder: Path) -> str:
    """Return a name of this call of `train`, the same after a restart.

    Args:
        folder: its folder of checkpoints.

    Returns:
        The id of the run, and a number; empty if there is no elastic agent with an id for the run.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # torchrun's default is "none"
    if run == "none":
        return ""
    _calls[folder.resolve()] += 1
    return f"{run} {_calls[folder.resolve()]}"


def claim(
    folder: Path, model: nn.Module, resume: bool = False, overwrite: bool = False
) -> tuple[bool, str]:
    """Check that training can write to a folder, before it starts. On rank 0.

    Args:
        folder: folder of the checkpoints; created if necessary.
        model: the model that is trained.
        resume: whether to go on from its latest checkpoint.
        overwrite: whether to replace its checkpoints.

    Returns:
        Whether to resume, as `resume` or after a restart of the ranks; and the name of this call.

    Raises:
        FileExistsError: It has checkpoints, and neither `resume` nor `overwrite` is True.
        FileNotFoundError: It has no checkpoint to resume from.
        OSError: It cannot be written to, or its disk has too little space.
    """
    last, call = latest(folder), name_call(folder)
    file, restarts = last / CALL_FILE, os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    writer = file.read_text() if call and restarts != "0" and file.exists() else ""
    own = writer.split()[:1] == call.split()[:1] != []  # this run, before the restart
    if own and writer == call:
        print0(f"restarted: train goes on from {last}")
        resume = True
    if resume and not (last / "trainer.pt").exists():
        raise FileNotFoundError(f"there is no checkpoint {last} to resume from: train without it")
    old = [path for path in (last, folder / "best") if path.exists()]
    if old and not (resume or overwrite or own):
        raise FileExistsError(
            f"{folder} has the checkpoints of an earlier training: use resume=True to go on with "
            "it, overwrite=True to replace it, or another out_dir"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(f"cannot write to out_dir {folder}: {error.strerror or error}") from error
    if not resume and not own:
        file.unlink(missing_ok=True)  # of an earlier run, perhaps with the same id
    weights = sum(p.nbytes for p in model.parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    one = 2 * (weights + trained)  # weights for transformers and to resume; two states of AdamW
    need = one if old else weights + 2 * one  # a new checkpoint is written beside the old one
    check_space(folder, need, "the checkpoints")
    return resume, call


def check_space(folder: Path, need: int, what: str) -> None:
    """Check that the disk of a folder has space for `need` bytes.

    Raises:
        OSError: It has not.
    """
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB of free space, but {what} take "
            f"{need / 1e9:.2f} GB: free some space, or use an out_dir on another disk"
        )


def latest(folder: Path) -> Path:
    """Return the latest checkpoint in `folder`, whether it exists or not.

    It is `last`; or `last.old`, if the process was killed while it put a new one in its place.
    """
    last, old = folder / "last", folder / "last.old"
    return old if old.exists() and not last.exists() else last
