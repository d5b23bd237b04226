"""From what a user asks for to what a run is given: checked against this machine."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from ddp_magic import devices
from ddp_magic.runs import Options

DEFAULT_CPU_RANKS = 2

# The options of `%%ddp` by the names that Python callers use; the magic's parser has its own.
DEFAULTS: dict[str, Any] = {
    "nproc_per_node": None,
    "gpus": None,
    "backend": None,
    "timeout": None,
    "time_limit": None,
    "no_init": False,
    "show": None,
    "session": None,
    "capture": None,
    "pull": (),
    "seed": None,
    "cold": False,
    "no_raise_error": False,
    "argv": (),
}


def names_to_take(text: str) -> frozenset[str]:
    """Read what follows `--capture`: `a,b`, or `none`.

    Raises:
        ValueError: It is no list of names.
    """
    names = frozenset() if text == "none" else frozenset(word.strip() for word in text.split(","))
    if wrong := [name for name in names if not name.isidentifier()]:
        raise ValueError(f"{wrong[0]!r} is no name")
    return names


def options_of(args: argparse.Namespace, argv: tuple[str, ...]) -> Options:
    """Check the options against the machine.

    Args:
        args: What was asked for; see `%%ddp --help`.
        argv: The cell's own arguments.

    Raises:
        ValueError: They cannot be had here.
    """
    if sys.platform == "win32":
        raise ValueError("Windows cannot fork: run the notebook's server inside WSL")
    gpus = devices.choose(devices.visible_gpus(os.environ), args.gpus)
    nproc = _number_of_ranks(args.nproc_per_node, len(gpus))
    uses_nccl = "nccl" in (args.backend or ("nccl" if gpus else ""))
    if uses_nccl and nproc > len(gpus):
        there = f"{len(gpus)} GPU{'s' if len(gpus) != 1 else ''}"
        raise ValueError(
            f"{nproc} ranks and {there}: nccl needs a GPU for each rank; "
            "lower -n, or take --backend gloo or -g none"
        )
    pulled = [pull.rank for pull in args.pull if pull.rank is not None and pull.rank >= nproc]
    if pulled:
        raise ValueError(f"--pull names rank {pulled[0]}, but there are {nproc} ranks")
    if args.show is not None and max(args.show) >= nproc:
        raise ValueError(f"--show names rank {max(args.show)}, but there are {nproc} ranks")
    return Options(
        nproc=nproc,
        device="cpu" if args.gpus == "none" else "cuda",
        visible=None if args.gpus is None else ",".join(gpu.visible for gpu in gpus),
        devices=devices.describe(gpus, nproc),
        backend=args.backend,
        timeout_s=args.timeout,
        time_limit_s=args.time_limit,
        init_process_group=not args.no_init,
        show=args.show,
        seed=args.seed,
        argv=argv,
        pull=args.pull,
        session=args.session or "",
    )


def _number_of_ranks(wanted: int | str | None, gpus: int) -> int:
    match wanted:
        case int():
            return wanted
        case None:
            return gpus or DEFAULT_CPU_RANKS
        case "gpu" if not gpus:
            raise ValueError("-n gpu, but there is no GPU")
        case "gpu":
            return gpus
        case "auto" if gpus:
            return gpus
        case _:
            return os.cpu_count() or 1
