"""From what a user asks for to what a run is given: checked against this machine.

`options.contradictions` knows what excludes each other anywhere. Of GPUs, `machine.devices` knows
those that are named, `machine.idle_gpus` chooses and locks.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from ddp_magic.engines import HERE
from ddp_magic.kernel import several_nodes
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.machine import devices, idle_gpus
from ddp_magic.kernel.machine.devices import Gpu
from ddp_magic.kernel.machine.limits import most_ranks, too_many
from ddp_magic.kernel.options import contradictions
from ddp_magic.kernel.options.declaration import DEFAULT_CPU_RANKS, OPTIONS
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.options.trace_file import trace_file
from ddp_magic.system.gpu_locks import GpuLocks
from ddp_magic.wire.specs import default_backend


def resolve(asked: SimpleNamespace, visible: Sequence[Gpu] | None = None) -> Options:
    """Check the options against each other and against the machine.

    Args:
        asked: The options' values, as `arguments` reads them.
        visible: The GPUs of this process; None to look for them.

    Raises:
        OptionError: They contradict each other, or the machine cannot meet them.
    """
    if sys.platform == "win32":
        raise ValueError("Windows cannot fork: run the notebook's server inside WSL")
    contradictions.check(asked)
    if asked.engine not in HERE:
        return _resolve_elsewhere(asked)
    several_nodes.check_here(asked)
    if visible is None:
        visible = devices.visible_gpus(os.environ)
    idle = idle_gpus.wanted(asked)
    try:
        if idle is not None:
            idle_gpus.check(idle, visible, os.environ)
        gpus = list(visible) if idle else devices.choose(list(visible), asked.gpus)
    except ValueError as error:
        raise OptionError("gpus", str(error)) from None
    count = idle or len(gpus)
    nproc = _number_of_ranks(asked, count)
    _check_nccl(asked, nproc, count)
    if problem := too_many(nproc, most_ranks()):
        raise OptionError("nproc_per_node", problem)
    contradictions.check_ranks(asked, nproc)
    trace = trace_file(asked)
    gpus, locks, notes = _lock(gpus, nproc, idle)  # last, so that no check fails afterwards
    return _options(
        asked,
        nproc,
        trace,
        gpu_locks=locks,
        visible=None if asked.gpus is None else ",".join(gpu.visible for gpu in gpus),
        devices="; ".join([devices.describe(gpus, nproc), *notes]),
    )


def _resolve_elsewhere(asked: SimpleNamespace) -> Options:
    """Return the options of a run on the nodes of a cluster, about whose devices nothing is known.

    Raises:
        OptionError: They contradict each other.
    """
    several_nodes.check(asked)
    least, most = several_nodes.node_range(asked)
    nproc = asked.nproc_per_node * most
    contradictions.check_ranks(asked, nproc)
    return _options(
        asked,
        nproc,
        trace_file(asked),
        visible="" if asked.gpus == "none" else None,
        devices=several_nodes.describe(asked.engine, asked.nproc_per_node, least, most),
    )


def _options(
    asked: SimpleNamespace,
    nproc: int,
    trace: Path | None,
    *,
    visible: str | None,
    devices: str,
    gpu_locks: GpuLocks | None = None,
) -> Options:
    least, most = several_nodes.node_range(asked)
    return Options(
        nproc=nproc,
        nnodes=most,
        min_nodes=least if least < most else 0,
        engine=asked.engine,
        engine_args=asked.engine_args,
        gpu_locks=gpu_locks or GpuLocks(),
        device="cpu" if asked.gpus == "none" else "cuda",
        visible=visible,
        devices=devices,
        backend=asked.backend,
        timeout_s=asked.timeout,
        time_limit_s=asked.time_limit,
        init_process_group=not asked.no_init,
        show=_shown_ranks(asked, nproc),
        quiet=asked.quiet,
        seed=asked.seed,
        argv=asked.argv,
        pull=asked.pull,
        profile=asked.profile,
        trace=trace,
        session=asked.session or "",
        check=asked.check,
        debug=asked.debug,
        max_restarts=asked.max_restarts,
        fixed={option.name: getattr(asked, option.name) for option in OPTIONS if option.fixed},
    )


def _lock(
    gpus: list[Gpu], nproc: int, idle: int | None
) -> tuple[list[Gpu], GpuLocks, Sequence[str]]:
    """Lock the GPUs of a run; choose them first if so many `idle` ones are wanted.

    Raises:
        OptionError: Not enough are idle.
    """
    if idle is None:
        return gpus, *idle_gpus.lock(gpus[:nproc])
    try:
        chosen, locks, note = idle_gpus.take(idle, gpus)
    except (ValueError, OSError) as error:
        raise OptionError("gpus", str(error)) from None
    return chosen, locks, [note]


def _shown_ranks(asked: SimpleNamespace, nproc: int) -> frozenset[int] | None:
    """Return whose output is shown; None for all.

    A default for `--show` may name ranks that this run does not have.
    """
    show: frozenset[int] | None = asked.show
    if show is None or "show" in asked.given:
        return show
    return (show & frozenset(range(nproc))) or None


def _number_of_ranks(asked: SimpleNamespace, gpus: int) -> int:
    wanted: int | str | None = asked.nproc_per_node
    match wanted:
        case int():
            return wanted
        case None:
            return gpus or DEFAULT_CPU_RANKS
        case "gpu" if not gpus:
            why = "none was chosen" if asked.gpus == "none" else "there is none here"
            raise OptionError("nproc_per_node", f"gpu needs a GPU, and {why}: use a number or cpu")
        case "gpu" | "auto" if gpus:
            return gpus
        case _:
            return os.cpu_count() or 1


def _check_nccl(asked: SimpleNamespace, nproc: int, gpus: int) -> None:
    """Check that each rank has a GPU where nccl needs one."""
    default = default_backend("cuda" if gpus else "cpu")
    if "nccl" not in (asked.backend or default) or nproc <= gpus:
        return
    if not gpus:
        why = "none was chosen" if asked.gpus == "none" else "there is none here"
        raise OptionError("backend", f"nccl needs a GPU for each rank, and {why}: use gloo")
    there = f"{gpus} GPU{'s' if gpus != 1 else ''}"
    raise OptionError(
        "nproc_per_node",
        f"nccl needs a GPU for each rank, but there are {nproc} ranks and {there}: "
        f"use {gpus}, the gloo backend, or no GPUs",
    )


def join(asked: SimpleNamespace, options: Options) -> Options:
    """Return the options of a session's later cell.

    Args:
        asked: The options' values, as `arguments` reads them.
        options: Those that the session was started with.

    Raises:
        OptionError: One contradicts them.
    """
    contradictions.check(asked)
    several_nodes.check_later(asked, options.engine)
    nproc = options.nproc_per_node
    other = f"omit the option, run %ddp_stop {options.session} first, or use another session name"
    if "nproc_per_node" in asked.given and asked.nproc_per_node != nproc:
        ranks = f"{nproc} rank{'s' if nproc > 1 else ''}"
        ranks += " per node" if options.nnodes > 1 else ""
        problem = f"session {options.session!r} already runs with {ranks}: {other}"
        raise OptionError("nproc_per_node", problem)
    for option in OPTIONS:
        if not option.fixed or option.name not in asked.given:
            continue
        value = getattr(asked, option.name)
        if value and value != options.fixed.get(option.name):  # the first cell may run again
            problem = f"session {options.session!r} is already running: {other}"
            raise OptionError(option.name, problem)
    contradictions.check_ranks(asked, options.nproc)
    return dataclasses.replace(
        options,
        devices=f"session {options.session} · {options.devices}",
        time_limit_s=asked.time_limit,
        show=_shown_ranks(asked, options.nproc),
        quiet=asked.quiet,
        seed=asked.seed,
        argv=asked.argv,
        pull=asked.pull,
        check=asked.check,
        debug=asked.debug,
        profile=asked.profile,
        trace=trace_file(asked),
        gpu_locks=GpuLocks(),  # the session's stay with its group
    )
