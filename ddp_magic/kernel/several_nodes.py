"""Options of a run that an engine places on the nodes of a cluster."""

from __future__ import annotations

import shlex
from types import SimpleNamespace

from ddp_magic.engines import HERE
from ddp_magic.kernel.options.declaration import spelling
from ddp_magic.kernel.options.option import OptionError

_ENGINES = "--engine slurm or --engine ray"


def check_here(asked: SimpleNamespace) -> None:
    """Check that nothing is asked of this machine that needs several.

    Raises:
        OptionError: Something is.
    """
    if asked.nnodes > 1:
        problem = (
            f"{asked.nnodes} nodes need an engine that reaches them: add --engine slurm or ray"
        )
        raise OptionError("nnodes", problem)
    if asked.engine_args:
        problem = f"engine {asked.engine} takes none: omit this option, or add {_ENGINES}"
        raise OptionError("engine_args", problem)


def check(asked: SimpleNamespace) -> None:
    """Check the options of a run on the nodes of a cluster.

    Raises:
        OptionError: They contradict each other, or the engine cannot be used here.
    """
    from ddp_magic.engines import remote

    try:
        engine = remote.find(asked.engine)
    except ValueError as error:
        raise OptionError("engine", str(error)) from None
    if problem := engine.problem():
        raise OptionError("engine", f"{asked.engine}: {problem}")
    try:
        arguments = shlex.split(asked.engine_args)
    except ValueError as error:
        problem = f"missing closing quote in {asked.engine_args!r} ({error})"
        raise OptionError("engine_args", problem) from None
    if problem := engine.problem_of(arguments):
        raise OptionError("engine_args", problem)
    if not isinstance(asked.nproc_per_node, int):
        problem = (
            f"engine {asked.engine} needs a number, since the nodes' processors and GPUs are not "
            "known here: use -n 4 for four ranks per node"
        )
        raise OptionError("nproc_per_node", problem)
    if asked.gpus not in (None, "none"):
        problem = (
            f"engine {asked.engine} chooses the GPUs of the nodes: omit this option, and ask it "
            'for them, by --engine-args "--gres=gpu:4" (slurm) or "--num-gpus 4" (ray); or use '
            "none, for the CPU"
        )
        raise OptionError("gpus", problem)
    check_later(asked, asked.engine)


def check_later(asked: SimpleNamespace, engine: str) -> None:
    """Check what is asked of any cell, also a session's later one.

    Raises:
        OptionError: Something is that works on this machine alone.
    """
    if asked.cold and engine not in HERE:
        why = "it starts the ranks without a preloaded process anyway"
        problem = f"not available with --engine {engine}, because {why}: omit {spelling('cold')}"
        raise OptionError("cold", problem)


def describe(asked: SimpleNamespace) -> str:
    """Return the line that says where the ranks run."""
    count, each = asked.nnodes, asked.nproc_per_node
    nodes = f"{count} node{'s' if count > 1 else ''}"
    ranks = f"{count * each} rank{'s' if count * each > 1 else ''}"
    return f"{ranks} = {nodes} x {each} ({asked.engine})"
