"""The process group, the device, and mixed precision by today's names.

Everything works without a process group too: then there is one rank, number 0.
"""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

_inherited: Any = None  # the group that this process has from the one that forked it


def _note_inherited() -> None:
    global _inherited  # noqa: PLW0603 -- there is one default group
    _inherited = dist.group.WORLD


if dist.is_available():
    os.register_at_fork(after_in_child=_note_inherited)


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the world size; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def print0(text: str) -> None:
    """Print on rank 0 only."""
    if rank_and_world()[0] == 0:
        print(text, flush=True)  # noqa: T201  what the person in front of the notebook reads


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum `values` over the ranks, in place; at world size 1 they are the sum already."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values)
    return values


def barrier() -> None:
    """Wait until all ranks are here."""
    if rank_and_world()[1] > 1:
        dist.barrier()


def unwrapped(model: nn.Module) -> Any:  # noqa: ANN401 -- whatever is inside
    """Return a model without DDP, which keeps it in `.module`."""
    return getattr(model, "module", model)


def setup(
    rank: int | None = None,
    world_size: int | None = None,
    port: int | None = None,
    backend: str | None = None,
) -> torch.device:
    """Join the process group, unless that is done already, and choose this rank's device.

    In a `%%ddp` cell the group is there and nothing happens. Under torchrun (RANK is in the
    environment) the group is made from the environment. With explicit numbers, as from
    `mp.spawn`, the ranks meet at 127.0.0.1. With none of these there is one process and no group.

    Args:
        rank: number of this process, 0 to world_size - 1.
        world_size: number of processes.
        port: TCP port of 127.0.0.1 where the ranks meet.
        backend: default `cpu:gloo,cuda:nccl` with GPUs, `gloo` without.

    Returns:
        This rank's GPU, which also becomes the current one, or the CPU.

    Raises:
        ValueError: Some of rank, world_size and port are given, but not all.
    """
    given = [number is not None for number in (rank, world_size, port)]
    initialized = dist.is_available() and dist.is_initialized()
    # A group that came with a fork is the parent's: numbers of one's own ask for another.
    if initialized and not (any(given) and dist.group.WORLD is _inherited):
        return _current_device()
    if any(given) and not all(given):
        raise ValueError("setup() takes rank, world_size and port together, or none of them")
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", rank or 0))
        # A launcher may show each rank its own GPU only, which then is number 0 everywhere.
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    backend = backend or ("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if rank is not None and world_size is not None:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=world_size)
    elif "RANK" in os.environ:
        dist.init_process_group(backend)
    return _current_device()


def cleanup() -> None:
    """Leave the process group, if there is one.

    Delete `DistributedDataParallel` objects first: in torch 2.13 one that outlives its gloo group
    can hang the process when it is destroyed at last. Those in reference cycles are collected here.
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


def autocast(
    device_type: str | None = None,
    dtype: torch.dtype | None = None,
    enabled: bool = True,
    cache_enabled: bool | None = None,
) -> torch.autocast:
    """`torch.autocast`, for which the device type may be left out, as in old `torch.cuda.amp`.

    Args:
        device_type: "cuda", "cpu", ...; None: "cuda" if this process uses a GPU, else "cpu".
        dtype: as for `torch.autocast`, and so on.
        enabled: whether to change anything.
        cache_enabled: whether casts of weights are remembered.

    Returns:
        The context manager, which is a decorator too.
    """
    return torch.autocast(device_type or _current_device_type(), dtype, enabled, cache_enabled)


class GradScaler(torch.amp.GradScaler):
    """`torch.amp.GradScaler`, for which the device may be left out, as in old `torch.cuda.amp`."""

    def __init__(
        self,
        device: str | None = None,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        """Make a scaler.

        Args:
            device: "cuda", "cpu", ...; None: "cuda" if this process uses a GPU, else "cpu".
            init_scale: first factor of the loss.
            growth_factor: what the factor is multiplied with after `growth_interval` good steps.
            backoff_factor: what it is multiplied with after a step with infinite gradients.
            growth_interval: number of steps.
            enabled: whether to scale at all.
        """
        super().__init__(
            device or _current_device_type(),
            init_scale,
            growth_factor,
            backoff_factor,
            growth_interval,
            enabled,
        )
