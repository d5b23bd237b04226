"""The process group, the device, and mixed precision.

All functions also work without a process group: then the rank is 0 and the world size is 1.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")

_inherited: Any = None  # the process group of the parent, in a forked process


def _note_inherited() -> None:
    global _inherited  # noqa: PLW0603 -- one default group per process
    _inherited = dist.group.WORLD


if dist.is_available():
    os.register_at_fork(after_in_child=_note_inherited)


def rank_and_world() -> tuple[int, int]:
    """Return the rank and the world size; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def print0(text: str) -> None:
    """Print on rank 0 only."""
    if rank_and_world()[0] == 0:
        print(text, flush=True)  # noqa: T201 -- output for the user


def bar(items: Any = None, what: str = "", *, shown: bool = True, **options: Any) -> Any:  # noqa: ANN401 -- tqdm's
    """Return a progress bar as text, on rank 0 only; see tqdm for `options`."""
    from tqdm.std import tqdm  # not needed for `setup`

    hidden = not shown or rank_and_world()[0] != 0
    return tqdm(items, what, disable=hidden, file=sys.stdout, ncols=60, **options)


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum `values` over all ranks in place, and return them."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values)
    return values


def all_gather(own: T) -> list[T]:
    """Return an object of each rank, by rank."""
    world = rank_and_world()[1]
    objects: list[Any] = [own] * world
    if world > 1:
        dist.all_gather_object(objects, own)
    return objects


def check_same(name: str, own: object, remedy: str) -> None:
    """Check that a value of each rank is that of the others. Collective.

    Args:
        name: what it is, for the message.
        own: the value of this rank.
        remedy: what to do, for the message.

    Raises:
        ValueError: It is not the same on all ranks.
    """
    every = all_gather(own)
    if other := [rank for rank, value in enumerate(every) if value != every[0]]:
        raise ValueError(f"{name} of rank {other[0]} is another than that of rank 0: {remedy}")


def first_rank(work: Callable[[], T]) -> T:
    """Call a function on rank 0 only. All ranks return its result, or raise its error."""
    rank, world = rank_and_world()
    outcome: list[Any] = [None]
    if rank == 0:
        try:
            outcome = [work()]
        except Exception as error:  # noqa: BLE001 -- the other ranks wait for it
            outcome = [error]
    if world > 1:
        dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    found: T = outcome[0]
    return found


def barrier() -> None:
    """Wait until all ranks have called this function."""
    if rank_and_world()[1] > 1:
        dist.barrier()


def unwrapped(model: nn.Module) -> Any:  # noqa: ANN401 -- any module
    """Return the model inside DDP, a `PromptedSam` or a PeftModel; or `model` itself."""
    found: Any = model
    for inner in ("module", "sam"):
        found = getattr(found, inner, found)
    return found.get_base_model() if hasattr(found, "get_base_model") else found


def setup(
    rank: int | None = None,
    world_size: int | None = None,
    port: int | None = None,
    backend: str | None = None,
) -> torch.device:
    """Initialize the process group if necessary, and return the device of this rank.

    If the process group is initialized, as in a `%%ddp` cell, this only returns the device. With
    `rank`, `world_size` and `port`, as for `mp.spawn`, the ranks connect at 127.0.0.1. Otherwise,
    under torchrun (RANK is in the environment), the process group is initialized from the
    environment. If none of these applies, there is no process group.

    Args:
        rank: rank of this process, from 0 to world_size - 1.
        world_size: number of processes.
        port: TCP port on 127.0.0.1 at which the ranks connect.
        backend: backend of the process group. Default: `cpu:gloo,cuda:nccl` with GPUs, `gloo`
            without.

    Returns:
        The GPU of this rank, which becomes the current device, or the CPU.

    Raises:
        ValueError: Only some of rank, world_size and port are given.
    """
    given = [number is not None for number in (rank, world_size, port)]
    initialized = dist.is_available() and dist.is_initialized()
    # A forked process has the group of its parent. With explicit arguments it needs its own.
    if initialized and not (any(given) and dist.group.WORLD is _inherited):
        return _current_device()
    if any(given) and not all(given):
        raise ValueError("setup() needs rank, world_size and port together, or none of them")
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", rank or 0))
        # If the launcher makes only one GPU visible per rank, its index is 0 on each rank.
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    backend = backend or ("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if rank is not None and world_size is not None:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=world_size)
    elif "RANK" in os.environ:
        dist.init_process_group(backend)
    return _current_device()


def cleanup() -> None:
    """Destroy the process group, if there is one.

    Delete `DistributedDataParallel` objects first: in torch 2.13, the process can hang when one is
    destroyed after its gloo group. This function collects those in reference cycles.
    """
    gc.collect()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _current_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _current_device_type() -> str:
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return "cuda" if in_use else "cpu"


def autocast(device_type: str | None = None, *arguments: Any, **options: Any) -> torch.autocast:  # noqa: ANN401 -- torch's
    """Return `torch.autocast`, with an optional device type, as in `torch.cuda.amp`.

    Args:
        device_type: "cuda", "cpu", ...; None: "cuda" if this process uses a GPU, else "cpu".
        arguments: see `torch.autocast`.
        options: see `torch.autocast`.
    """
    return torch.autocast(device_type or _current_device_type(), *arguments, **options)


class GradScaler(torch.amp.GradScaler):
    """`torch.amp.GradScaler` with an optional device, as in `torch.cuda.amp`."""

    def __init__(self, device: str | None = None, **options: Any) -> None:  # noqa: ANN401 -- torch's
        """Create the scaler.

        Args:
            device: "cuda", "cpu", ...; None: "cuda" if this process uses a GPU, else "cpu".
            options: keyword arguments of `torch.amp.GradScaler`.
        """
        super().__init__(device or _current_device_type(), **options)
