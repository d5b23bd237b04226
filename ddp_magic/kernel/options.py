"""From what a user asks for to what a run is given: checked against this machine."""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import Any

from ddp_magic.kernel import devices
from ddp_magic.kernel.run import Options

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
    _check_numbers(args)
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
    if args.show and max(args.show) >= nproc:
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
        case int() if wanted >= 1:
            return wanted
        case str() if wanted.isdigit() and int(wanted) >= 1:
            return int(wanted)
        case None:
            return gpus or DEFAULT_CPU_RANKS
        case "gpu" if not gpus:
            raise ValueError("-n gpu, but there is no GPU")
        case "gpu":
            return gpus
        case "auto" if gpus:
            return gpus
        case "cpu" | "auto":
            return os.cpu_count() or 1
        case _:
            raise ValueError(
                f"nproc_per_node={wanted!r}: expected 1, 2, ..., or 'gpu', 'cpu', 'auto'"
            )


def _check_numbers(args: argparse.Namespace) -> None:
    """Check what Python callers may pass, and the magic's parser has checked."""
    for name in ("timeout", "time_limit"):
        value = getattr(args, name)
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise ValueError(f"{name}={value!r}: expected a number of seconds")
    if args.seed is not None and not isinstance(args.seed, int):
        raise ValueError(f"seed={args.seed!r}: expected an int")
    if wrong := [rank for rank in args.show or () if not (isinstance(rank, int) and rank >= 0)]:
        raise ValueError(f"show: {wrong[0]!r} is not a rank; expected ints, such as show=[0, 2]")
