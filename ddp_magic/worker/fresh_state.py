"""Resets what a fork inherits: seeds, thread pools."""

from __future__ import annotations

import atexit
import functools
import os
import random
import shutil
import sys

import psutil
import threadpoolctl
import torch

from ddp_magic.system import processes
from ddp_magic.system.environment import threads_wanted
from ddp_magic.system.tracebacks import end_stacks_at_ours, write_tracebacks_without_ours
from ddp_magic.worker.console.streams import prepare_high_numbers


def take() -> None:
    """Make this fork of the agent like a fresh interpreter that has imported the same modules."""
    processes.tie_forked_children()
    # Temporary directories of libraries that the forkserver has imported are not this rank's.
    atexit.unregister(shutil.rmtree)
    _reseed()
    prepare_high_numbers()  # before the first thread
    _set_threads()
    end_stacks_at_ours()
    write_tracebacks_without_ours()


def prepare() -> None:
    """Look up what is the same in all forks of this process; each would need 10 ms for it."""
    _physical_cores()
    threadpoolctl.threadpool_info()  # it keeps the real paths of all loaded libraries


def seed(value: int | None) -> None:
    """Seed Python's, NumPy's and torch's generators, as `--seed` asks for; None for none."""
    if value is None:
        return
    import numpy as np

    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def _reseed() -> None:
    """Seed the generators from the operating system: forks of one process have one state."""
    random.seed()
    torch.default_generator.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _set_threads() -> None:
    """Give thread pools, which the forkserver keeps at one thread, the size of a fresh process's.

    The forkserver has no other threads, since a fork does not copy them.
    """
    wanted = threads_wanted(os.environ) or _cores()
    if wanted != 1 or torch.get_num_threads() != 1:
        torch.set_num_threads(wanted)
        threadpoolctl.threadpool_limits(wanted)  # NumPy's and SciPy's; it stays as it is set


def _cores() -> int:
    """Return torch's default: a thread for each core, not for each hyperthread."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return min(_physical_cores() or allowed, allowed)


@functools.cache
def _physical_cores() -> int | None:
    cores: int | None = psutil.cpu_count(logical=False)
    return cores
