"""What this machine can hold: a typing error in `-n` is refused, and a limit that is met is named.

Each bound is below what a rank really needs, so that no count is refused which could run.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import psutil

from ddp_magic.errors import LaunchError

_RANK_TASKS = 3  # the threads of a rank; torch has more
_RANK_MIB = 8  # of its own; an idle one on the CPU has 11
_RANK_DESCRIPTORS = 2  # in the notebook's process
_CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup/memory"))


def most_ranks() -> dict[str, int]:
    """Return by each limit of the machine how many ranks it allows."""
    tasks = [
        *map(_number, (Path("/proc/sys/kernel/pid_max"), Path("/proc/sys/kernel/threads-max"))),
        *(_number(group / "pids.max") for group in _CGROUPS),
    ]
    if os.geteuid() != 0:  # root is not bound by it
        tasks.append(_soft(resource.RLIMIT_NPROC))
    mib = _memory_mib()
    found = {f"{mib:,} MiB of memory": mib // _RANK_MIB}
    if known := [count for count in tasks if count is not None]:
        found[f"at most {min(known):,} processes and threads"] = min(known) // _RANK_TASKS
    if (files := _soft(resource.RLIMIT_NOFILE)) is not None:
        found[f"at most {files:,} open files for a process (ulimit -n)"] = (
            files // _RANK_DESCRIPTORS
        )
    return found


@cache
def _memory_mib() -> int:
    memory = [psutil.virtual_memory().total]
    memory += [n for group in _CGROUPS if (n := _number(group / "memory.max")) is not None]
    memory += [n for group in _CGROUPS if (n := _number(group / "memory.limit_in_bytes"))]
    return (min(memory) + psutil.swap_memory().total) >> 20


def too_many(nproc: int, most: Mapping[str, int]) -> str:
    """Return why this machine cannot hold so many ranks, and what to do; empty if it may.

    Args:
        nproc: Number of ranks.
        most: How many each limit of the machine allows (`most_ranks`).
    """
    limit = min(most, key=most.__getitem__)
    if nproc <= most[limit]:
        return ""
    return f"{nproc:,} ranks are too many for this machine, which has {limit}: use a smaller number"


def system_error(error: OSError) -> LaunchError:
    """Return the error to show when a system call of the notebook's own process failed."""
    text = str(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit = _soft(resource.RLIMIT_NOFILE)
        what_to_do = "close files in the notebook, or restart its kernel"
        text = f"{error.strerror} (ulimit -n: {limit}): {what_to_do}"
    return LaunchError(f"the notebook's process could not run the cell: {text}")


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # not Linux, no such cgroup, "max"
        return None


def _soft(kind: int) -> int | None:
    limit = resource.getrlimit(kind)[0]
    return None if limit == resource.RLIM_INFINITY else limit
