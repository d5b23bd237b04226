"""Environment variables: what ranks get, and which changes a forkserver cannot follow. Pure.

Libraries read some variables when they are imported and others when they are used. A forkserver has
already imported its libraries: if a variable of the first kind has changed since, another
forkserver is needed. Every variable counts as the first kind, unless it is listed here as read late
(`LATE`) or set in each rank.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

# What an outer launcher (torchrun, Slurm's srun with torch's variables, MPI) leaves in a notebook's
# environment. The ranks would take it for their own.
LAUNCHER_VARIABLES = frozenset(
    [
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_NAME",
        "ROLE_WORLD_SIZE",
        "NODE_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "PMI_RANK",
        "PMI_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ]
)
# torchrun reads its options from PET_ variables too: one could bring back its own rendezvous.
_LAUNCHER_PREFIXES = ("TORCHELASTIC_", "PET_")
# It tells libraries that they run in a kernel. A rank is a script.
_KERNELS_OWN = frozenset(["JPY_PARENT_PID"])

# Sizes of thread pools: 1 in the forkserver, which must have no threads when it forks; in the ranks
# the libraries' own functions set them (`worker`).
POOL_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# Makes `torch.cuda.is_available` ask the driver's management library, so that the forkserver has no
# CUDA context, which would not survive a fork. torch reads it at each call.
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"

# Read when they are used, or set in each rank.
LATE = frozenset(
    [
        *LAUNCHER_VARIABLES,
        *POOL_VARIABLES,
        NVML_CHECK,
        "CUDA_VISIBLE_DEVICES",  # when CUDA starts
        "CUDA_DEVICE_ORDER",
        "CUDA_LAUNCH_BLOCKING",
        "COLUMNS",
        "JPY_PARENT_PID",
        "JPY_SESSION_NAME",
        "KMP_INIT_AT_FORK",  # set by scikit-learn's import
        "LINES",
        "OLDPWD",
        "PATH",
        "PWD",
        "SHLVL",
        "TOKENIZERS_PARALLELISM",  # at each call of a tokenizer
        "TZ",  # tzset in each rank
        "WANDB_API_KEY",
        "_",
    ]
)
# All ranks are on one machine, whose host name may not resolve, and no other machine connects to
# them. This overrides a cluster's own setting.
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
ONE_MACHINE = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
# Read when a process group is made.
_LATE_PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "TP_", *_LAUNCHER_PREFIXES)


def rank_environment(
    env: Mapping[str, str], visible: str | None, nproc: int, nnodes: int = 1
) -> dict[str, str]:
    """Return the environment of an agent and its ranks.

    Args:
        env: The kernel's environment, as it is now.
        visible: Value for CUDA_VISIBLE_DEVICES; None to leave it alone.
        nproc: Number of ranks on a machine.
        nnodes: Number of machines.
    """
    ours = {
        name: value
        for name, value in env.items()
        if name not in LAUNCHER_VARIABLES | _KERNELS_OWN and not name.startswith(_LAUNCHER_PREFIXES)
    }
    if visible is not None:
        ours["CUDA_VISIBLE_DEVICES"] = visible
        # Numbers as nvidia-smi shows them, also if the GPUs differ in speed.
        ours.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if nproc > 1:
        ours.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does
    if nnodes == 1:
        ours |= ONE_MACHINE
    # How many operations torch's Flight Recorder keeps. It reads this when it is imported. With its
    # default of 2000 a record costs 26 ms with NCCL, and hundreds with gloo; with 64, under 2 ms.
    ours.setdefault("TORCH_FR_BUFFER_SIZE", "64")
    ours["PYTHONUNBUFFERED"] = "1"  # for Python programs that a cell starts
    # A rank's figures become displays only through IPython's own backend.
    ours.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    # progressbar2 rewrites its line, as in a notebook, instead of printing another.
    ours.setdefault("PROGRESSBAR_IS_TERMINAL", "1")
    return ours


def forkserver_environment(ranks: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a forkserver.

    Args:
        ranks: The environment of the ranks it is for.
    """
    return {**ranks, **dict.fromkeys(POOL_VARIABLES, "1"), NVML_CHECK: "1"}


def early_differences(now: Mapping[str, str], then: Mapping[str, str]) -> list[str]:
    """Return the variables that differ and may have been read at import, sorted."""
    return sorted(
        name
        for name in now.keys() | then.keys()
        if not is_late(name) and now.get(name) != then.get(name)
    )


def is_late(name: str) -> bool:
    """Return whether a change of this variable has an effect after the libraries are imported."""
    return name in LATE or name.startswith(_LATE_PREFIXES)


def threads_wanted(env: Mapping[str, str]) -> int | None:
    """Return the number of threads in a fresh interpreter's pools; None if `env` does not say.

    Args:
        env: A rank's environment.
    """
    for name in POOL_VARIABLES:
        first = env.get(name, "").split(",")[0].strip()  # OpenMP takes a list, by nesting level
        if first.isdigit() and int(first) > 0:
            return int(first)
    return None
