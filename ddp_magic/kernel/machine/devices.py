"""The GPUs of this machine, and those that `-g` names (`idle_gpus`: `-g free:N`). Uses no CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace

BUSY_MIB = 500  # a desktop, or a driver's own context, takes less
_QUERY_TIMEOUT_S = 5


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU that this process may use.

    Attributes:
        visible: Its name in CUDA_VISIBLE_DEVICES: a number or a UUID.
        uuid: Its UUID, in full.
        name: The model's name.
        used_mib: Memory that is in use by any process, MiB.
        total_mib: Its memory, MiB.
    """

    visible: str
    uuid: str
    name: str
    used_mib: int
    total_mib: int

    @property
    def memory(self) -> str:
        """How much of its memory is in use, in words."""
        return f"{self.used_mib:,} of {self.total_mib:,} MiB in use"


def visible_gpus(env: Mapping[str, str]) -> list[Gpu]:
    """Return the GPUs that CUDA would see under this environment, in its order.

    It asks `nvidia-smi`, so that the notebook's process has no CUDA context. If that is missing or
    fails, there are no GPUs.
    """
    gpus = _nvidia_smi()
    mask = env.get("CUDA_VISIBLE_DEVICES")
    if mask is None:
        return gpus
    visible = []
    for entry in filter(None, map(str.strip, mask.split(","))):
        found = [
            replace(gpu, visible=entry)
            for gpu in gpus
            if entry == gpu.visible or gpu.uuid.startswith(entry)
        ]
        if not found:
            break  # as CUDA does, which ignores what follows an unknown entry
        visible += found[:1]
    return visible


def _nvidia_smi() -> list[Gpu]:
    """Return every GPU in the machine."""
    rows = query_nvidia_smi("--query-gpu=index,uuid,name,memory.used,memory.total", 5)
    return [
        Gpu(visible=index, uuid=uuid, name=name, used_mib=mib(used), total_mib=mib(total))
        for index, uuid, name, used, total in rows
        if index.isdigit()
    ]


def query_nvidia_smi(query: str, columns: int) -> list[list[str]]:
    """Return the lines of an answer of `nvidia-smi`; none if it is missing or fails.

    By the program rather than nvidia-ml-py: importing that takes some 16 ms of the first cell, also
    without a GPU, and it would keep the driver's library open in the notebook's process. A driver
    that hangs stops the program, not the notebook.

    Args:
        query: Its option, such as `--query-gpu=index,uuid`.
        columns: The number of fields of a line; others are no answer.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_QUERY_TIMEOUT_S,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return []
    lines = [[field.strip() for field in line.split(",")] for line in answer.stdout.splitlines()]
    return [fields for fields in lines if len(fields) == columns]


def mib(text: str) -> int:
    """Read an amount of memory."""
    return int(text) if text.isdigit() else 0  # "[N/A]" on some integrated GPUs


def choose(gpus: list[Gpu], wanted: str | None) -> list[Gpu]:
    """Return the GPUs that the option `-g` names.

    Args:
        gpus: The visible GPUs.
        wanted: None for all, "none" for the CPU, or a comma-separated list of positions in `gpus`
            (as CUDA numbers them) and UUIDs.

    Raises:
        ValueError: One does not exist, or is listed twice.
    """
    if wanted is None:
        return gpus
    if wanted == "none":
        return []
    chosen: list[Gpu] = []
    for entry in map(str.strip, wanted.split(",")):
        if re.fullmatch(r"\d+", entry):
            found = gpus[int(entry) : int(entry) + 1]
        elif entry.startswith(("GPU-", "MIG-")):
            found = [gpu for gpu in gpus if gpu.visible == entry] or [
                replace(gpu, visible=entry) for gpu in _nvidia_smi() if gpu.uuid.startswith(entry)
            ]
        else:
            raise ValueError(f"invalid GPU {entry!r}: use numbers, UUIDs, or none")
        if not found:
            advice = "" if gpus else ": use none for the CPU"
            raise ValueError(f"GPU {entry} does not exist: {what_is_there(len(gpus))}{advice}")
        if any(found[0].uuid == gpu.uuid for gpu in chosen):
            raise ValueError(f"GPU {entry} is listed twice")
        chosen += found[:1]
    return chosen


def what_is_there(count: int) -> str:
    """Say how many GPUs are visible."""
    if count < 2:
        return "only GPU 0 is visible" if count else "no GPU is visible"
    return f"GPUs 0 to {count - 1} are visible"


def describe(gpus: list[Gpu], nproc: int) -> str:
    """Return a line that says which devices the ranks run on, and which of these are busy."""
    ranks = f"{nproc} rank{'s' if nproc > 1 else ''}"
    if not gpus:
        return f"{ranks} on the CPU"
    used = gpus[:nproc]
    names = ", ".join(f"cuda:{i} {gpu.name}" for i, gpu in enumerate(used))
    busy = [
        f"cuda:{i} is busy ({gpu.memory})" for i, gpu in enumerate(used) if gpu.used_mib > BUSY_MIB
    ]
    return "; ".join([f"{ranks} on {names}", *busy])
