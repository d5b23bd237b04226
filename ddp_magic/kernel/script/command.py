"""The command that runs a script as `%%ddp` would have run the cell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

from ddp_magic.kernel.machine import devices
from ddp_magic.kernel.options.declaration import DEFAULT_CPU_RANKS
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.several_nodes import node_range


def command(
    asked: SimpleNamespace, file: str, gpus: list[devices.Gpu], folders: Sequence[str] = ()
) -> str:
    """Return the command line.

    Args:
        asked: The options' values.
        file: The script, as the user calls it.
        gpus: The GPUs of this process.
        folders: Where else the script finds modules.

    Raises:
        OptionError: A GPU does not exist.
    """
    variables = {"PYTHONPATH": os.pathsep.join(folders)} if folders else {}
    chosen = None
    if asked.gpus is not None:
        chosen = _chosen(asked.gpus, gpus)
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    if asked.check:
        variables["TORCH_DISTRIBUTED_DEBUG"] = "DETAIL"
    words = ["torchrun"]
    least, most = node_range(asked)
    if most > 1:
        span = str(most) if least == most else f"{least}:{most}"
        words += ["--nnodes", span, "--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29400"]
    count = len(gpus if chosen is None else chosen) or DEFAULT_CPU_RANKS
    words += ["--nproc-per-node", str(asked.nproc_per_node or count)]
    if asked.max_restarts:
        words += ["--max-restarts", str(asked.max_restarts)]
    set_first = [f"{name}={value and shlex.quote(value)}" for name, value in variables.items()]
    return " ".join([*set_first, shlex.join([*words, file, *asked.argv])])


def visible_gpus() -> list[devices.Gpu]:
    """Return the GPUs of this process."""
    return devices.visible_gpus(os.environ)


def folders_of_modules(script: Path, modules: Collection[str]) -> list[str]:
    """Return the folders in which the notebook finds modules, and a script by itself does not.

    Args:
        script: The script's path: Python looks in its folder first.
        modules: Top-level modules that may be needed.
    """
    code = "import sys; print(*sys.path[1:], sep='\\n')"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    known = {os.path.realpath(path) for path in [str(script.parent), *plain.stdout.splitlines()]}
    found = dict.fromkeys(os.path.realpath(entry) for entry in sys.path)
    folders = [
        entry
        for entry in found
        if entry not in known and any(PathFinder.find_spec(name, [entry]) for name in modules)
    ]
    here = os.path.realpath(".")
    return ["." if entry == here else entry for entry in folders]


def _chosen(wanted: str, gpus: list[devices.Gpu]) -> list[str]:
    """Return the GPUs for CUDA_VISIBLE_DEVICES; without any here, as the user names them."""
    if not gpus and wanted != "none":
        return wanted.split(",")
    try:
        return [gpu.visible for gpu in devices.choose(gpus, wanted)]
    except ValueError as error:
        raise OptionError("gpus", str(error)) from None
