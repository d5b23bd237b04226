"""Idle GPUs for `-g free:2`, and the locks that keep other runs from choosing the same.

A GPU is idle if no process computes on it, at most `BUSY_MIB` of its memory are in use, and no
other run of ddp_magic on this machine holds it. Every run locks its GPUs, also those that it names:
it may be some seconds before a rank uses the memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import psutil

from ddp_magic.kernel.machine.devices import BUSY_MIB, Gpu, mib, query_nvidia_smi, what_is_there
from ddp_magic.system import gpu_locks
from ddp_magic.system.gpu_locks import GpuLocks

_FREE = "free"
_LISTED = 3  # processes of one GPU that a message names
_ADVICE = "wait, name GPUs to share them, or use none for the CPU"


def wanted(asked: SimpleNamespace) -> int | None:
    """Return how many idle GPUs `-g` asks for; None if it asks for something else.

    `free` alone means as many as there are ranks, if `-n` is a number, otherwise one.
    """
    if asked.gpus is None or not asked.gpus.startswith(_FREE):
        return None
    _, _, number = asked.gpus.partition(":")
    if number:
        return int(number)
    return asked.nproc_per_node if isinstance(asked.nproc_per_node, int) else 1


def check(count: int, gpus: Sequence[Gpu], env: Mapping[str, str]) -> None:
    """Check that there are so many GPUs, idle or not.

    Raises:
        ValueError: There are not.
    """
    if not gpus:
        raise ValueError(f"{_why_none(env)}: use none for the CPU")
    if count > len(gpus):
        needed = f"{count} idle GPUs are needed, and {what_is_there(len(gpus))}"
        raise ValueError(f"{needed}: use free:{len(gpus)} or less")


def _why_none(env: Mapping[str, str]) -> str:
    mask = env.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None:
        return "there is no GPU here, because nvidia-smi is not found"
    if mask is not None and "MIG-" in mask:
        return f"free cannot choose among the MIG instances of CUDA_VISIBLE_DEVICES={mask}"
    if not query_nvidia_smi("--query-gpu=index", 1):
        return "nvidia-smi finds no GPU"
    return f"no GPU is visible with CUDA_VISIBLE_DEVICES={mask}"


def take(count: int, gpus: Sequence[Gpu]) -> tuple[list[Gpu], GpuLocks, str]:
    """Choose idle GPUs, and lock them.

    Args:
        count: How many.
        gpus: The visible GPUs.

    Returns:
        The first that are idle, their locks, and a note that says which they are.

    Raises:
        ValueError: Not enough are idle; the text says who uses the others.
        OSError: This process can open no more files.
    """
    uses = _uses(gpus)
    locks = GpuLocks()
    chosen: list[int] = []
    with locks.released_on_error(), gpu_locks.choosing():
        for number, gpu in enumerate(gpus):
            if len(chosen) < count and gpu.uuid not in uses and locks.take(gpu.uuid):
                chosen.append(number)
        if len(chosen) < count:
            raise ValueError(_not_enough(count, gpus, chosen, uses))
    numbers = ", ".join(map(str, chosen))
    note = f"idle GPU{'s' if count > 1 else ''} chosen: {numbers}"
    return [gpus[number] for number in chosen], locks, note


def lock(gpus: Sequence[Gpu]) -> tuple[GpuLocks, list[str]]:
    """Lock GPUs that a run uses whether they are idle or not.

    Returns:
        The locks, and notes about those that another run holds.
    """
    locks = GpuLocks()
    held: dict[str, list[str]] = {}
    for number, gpu in enumerate(gpus):
        with contextlib.suppress(OSError):  # nobody will avoid it; the run does not need the lock
            if not locks.take(gpu.uuid) and (use := _held(gpu.uuid)):
                held.setdefault(use, []).append(f"cuda:{number}")
    return locks, [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {use}"
        for use, names in held.items()
    ]


def _uses(gpus: Sequence[Gpu]) -> dict[str, list[str]]:
    """Return what keeps each GPU that is not idle from being so, by UUID."""
    uses: dict[str, list[str]] = {}
    for uuid, pid, used in query_nvidia_smi("--query-compute-apps=gpu_uuid,pid,used_memory", 3):
        if pid.isdigit():
            memory = f", {mib(used):,} MiB" if used.isdigit() else ""
            uses.setdefault(uuid, []).append(f"used by {_owner(int(pid))} (pid {pid}{memory})")
    for uuid, mode in query_nvidia_smi("--query-gpu=uuid,mig.mode.current", 2):
        if mode == "Enabled":
            uses[uuid] = ["divided into MIG instances, which free cannot choose"]
    for gpu in gpus:
        if gpu.used_mib > BUSY_MIB:
            uses.setdefault(gpu.uuid, ["used by processes that cannot be seen from here"])
    return uses


def _not_enough(
    count: int, gpus: Sequence[Gpu], idle: Sequence[int], uses: Mapping[str, Sequence[str]]
) -> str:
    """Return who uses the GPUs that are not idle, and what to do."""
    busy = []
    for number, gpu in enumerate(gpus):
        if number not in idle:
            use = list(uses.get(gpu.uuid, ()))
            use[_LISTED:] = [f"{len(use) - _LISTED} more"] if len(use) > _LISTED else []
            use += filter(None, [_held(gpu.uuid)])
            words = ", ".join(use) or "held by another run"
            busy.append(f"GPU {number} ({gpu.memory}) is {words}")
    needed = f"{count} idle GPU{'s are' if count > 1 else ' is'} needed, and "
    there = f"{len(idle) or 'none'} of {len(gpus)} {'is' if len(idle) < 2 else 'are'} idle"
    fewer = f"use free:{len(idle)}, " if idle else ""
    return f"{needed}{there}: {'; '.join(busy)}: {fewer}{_ADVICE}"


def _owner(pid: int) -> str:
    try:
        return str(psutil.Process(pid).username())
    except psutil.Error:  # in a container, those outside it cannot be seen
        return "a process that cannot be seen from here"


def _held(uuid: str) -> str:
    """Return which run holds a GPU, in words; empty if none does."""
    who = gpu_locks.holder(uuid)
    if who is None:
        return ""
    if who.pid == os.getpid():
        return "held by this notebook's own run or session (%ddp_status lists them)"
    process = f" (pid {who.pid})" if who.pid else ""
    return f"held by a run of {who.user or 'somebody'}{process}"
