"""The device of a rank: set once, and how much of its memory PyTorch holds."""

from __future__ import annotations

import os

import torch


def set_device(wanted: str, backend: str | None) -> torch.device:
    """Choose this rank's device, and make it the current CUDA device.

    Args:
        wanted: "cuda" or "cpu". Without a GPU, "cuda" gives the CPU.
        backend: Backend of the default process group; None for the device's default.

    Raises:
        RuntimeError: The backend is NCCL, and CUDA sees fewer GPUs than there are ranks.
    """
    if wanted != "cuda" or not torch.cuda.is_available():
        return torch.device("cpu")
    gpus, ranks = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    if ranks > gpus and "nccl" in (backend or "nccl"):
        # The kernel has checked what nvidia-smi shows; this is what CUDA sees.
        raise RuntimeError(
            f"{ranks} ranks, but CUDA sees {gpus} GPUs: nccl needs a GPU for each rank. "
            "Use fewer ranks (-n), or --backend gloo"
        )
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % gpus)
    torch.cuda.set_device(device)
    return device


def cuda_error() -> str:
    """Return why every use of CUDA fails from now on in this process; empty if it does not.

    A failed assertion or an illegal address in a kernel leaves CUDA's context unusable until the
    process ends: https://docs.nvidia.com/cuda/cuda-runtime-api (cudaErrorAssert). To ask for it
    does not wait for kernels that are still running.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return ""
    try:
        torch.cuda.current_stream().query()
    except RuntimeError as error:  # torch 2.8 and later: AcceleratorError
        return str(error).partition("\n")[0]
    return ""


def reserved_mib() -> float | None:
    """Return the memory that torch holds on the current GPU, in MiB; None if it uses none."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return torch.cuda.memory_reserved() / 2**20
