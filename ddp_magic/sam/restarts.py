"""Which call of `train` wrote a checkpoint, for a program that torch's elastic agent restarts.

The agent (`torchrun --max-restarts`, `%%ddp --max-restarts`) runs the program again from its first
line. `train` then goes on from the checkpoint of the same call, and only from that one: one of an
earlier program, or of another call with the same folder, may be of another model.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from ddp_magic.sam.process_group import print0, rank_and_world

CALL_FILE = "call.txt"  # in the folder of a checkpoint: which call wrote it
_calls: Counter[Path] = Counter()  # of `train` in this process, by folder


def name_call(folder: Path | None) -> str:
    """Return a name of this call of `train`, the same after a restart.

    Args:
        folder: its folder of checkpoints.

    Returns:
        The name; empty if there is no folder, or no elastic agent with an id for the run.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # torchrun's default is "none"
    if folder is None or run == "none":
        return ""
    path = folder.resolve()
    _calls[path] += 1
    return f"{run} {_calls[path]}"


def is_interrupted(last: Path, call: str) -> bool:
    """Return whether this call of `train` wrote a checkpoint before the ranks were restarted.

    Args:
        last: folder of the latest checkpoint.
        call: the name of the call.
    """
    file = last / CALL_FILE
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        if rank_and_world()[0] == 0:
            file.unlink(missing_ok=True)  # of an earlier program, whose run may have the same id
        return False
    if not call or not file.exists() or file.read_text() != call:
        return False
    print0(f"restarted: train goes on from {last}")
    return True
