"""Which call of `train` wrote a checkpoint, for a program that torch's elastic agent restarts.

The agent (`torchrun --max-restarts`, `%%ddp --max-restarts`) runs the program again from its first
line. `train` then goes on from the checkpoint of the same call, and only from that one: one of an
earlier program, or of another call with the same folder, may be of another model.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

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


def written_by(last: Path, call: str) -> str:
    """Return who wrote a checkpoint, after the ranks were restarted.

    Args:
        last: folder of the latest checkpoint.
        call: the name of this call.

    Returns:
        "call": this call, before the restart; "run": another call of this run; "": others, or the
        ranks were not restarted.
    """
    file = last / CALL_FILE
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not call or not file.exists():
        return ""
    found = file.read_text()
    return (
        "call" if found == call else "run" if found.split()[0] == call.split(maxsplit=1)[0] else ""
    )
