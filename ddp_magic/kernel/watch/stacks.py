"""The stacks of ranks: asked for by a signal, written by faulthandler, read from their files."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from ddp_magic.display.diagnosis import diagnose
from ddp_magic.display.diagnosis.diagnose import CellCode
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import StackDumped

WAIT_S = 2.0  # for a rank to write; one that is stopped does not
SETTLE_S = 0.05  # between the first and the last byte of a dump
POLL_S = 0.02
MAX_FRAMES = 40


def ask(
    ranks: Collection[int],
    directory: RunDirectory,
    dump: Callable[[int], None],
    *,
    code: CellCode,
    wait_s: float = WAIT_S,
) -> list[StackDumped]:
    """Return the stacks of ranks, innermost frame first; of those that write them in time.

    Args:
        ranks: Which ranks.
        directory: Where they write.
        dump: Asks a rank to write.
        code: The cell's.
        wait_s: How long to wait, in seconds.
    """
    sizes = {rank: _size(directory, rank) for rank in ranks}
    for rank in ranks:
        dump(rank)
    deadline = time.monotonic() + wait_s
    while any(_size(directory, rank) == size for rank, size in sizes.items()):
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    time.sleep(SETTLE_S)
    written = [rank for rank, size in sizes.items() if _size(directory, rank) > size]
    stacks = [diagnose.read_stack(directory, rank, code, MAX_FRAMES) for rank in written]
    return [stack for stack in stacks if stack is not None]


def _size(directory: RunDirectory, rank: int) -> int:
    try:
        return directory.stacks(rank).stat().st_size
    except OSError:
        return 0
