"""Options of a run that an engine places on the nodes of a cluster."""

from __future__ import annotations

import shlex
from types import SimpleNamespace

from ddp_magic.engines import HERE, NodesEngine
from ddp_magic.kernel.options.declaration import spelling
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.wire.relay_frames import MAX_NODES

MAX_RANKS = 20_000  # the table of so many takes seconds
_ENGINES = "--engine slurm or --engine ray"


def node_range(asked: SimpleNamespace) -> tuple[int, int]:
    """Return the fewest and the most nodes that were asked for."""
    least, most = asked.nnodes if isinstance(asked.nnodes, tuple) else (asked.nnodes, asked.nnodes)
    return least, most


def check_here(asked: SimpleNamespace) -> None:
    """Check that nothing is asked of this machine that needs several.

    Raises:
        OptionError: Something is.
    """
    least, most = node_range(asked)
    if most > 1:
        count = _span(least, most)
        problem = f"{count} nodes need an engine that reaches them: add --engine slurm or ray"
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
    _check_counts(asked)
    _check_range(asked, engine)
    check_later(asked, asked.engine)


def _check_counts(asked: SimpleNamespace) -> None:
    """Check that a typing error does not ask for more than a notebook can follow.

    Raises:
        OptionError: It does.
    """
    _, most = node_range(asked)
    if most > MAX_NODES:
        raise OptionError("nnodes", f"{most:,} nodes are too many: use at most {MAX_NODES:,}")
    if (ranks := most * asked.nproc_per_node) > MAX_RANKS:
        problem = f"{ranks:,} ranks are too many: use at most {MAX_RANKS:,} on all nodes"
        raise OptionError("nproc_per_node", problem)


def _check_range(asked: SimpleNamespace, engine: NodesEngine) -> None:
    """Check that the number of nodes may be found out later, if it is a range.

    Raises:
        OptionError: It may not.
    """
    least, most = node_range(asked)
    if least == most:
        return
    if not engine.START.get("node_count_variable"):
        problem = f"engine {asked.engine} starts a fixed number of nodes: use {most}"
        raise OptionError("nnodes", problem)
    if asked.session:
        problem = f"the ranks of a session are a fixed number: use {most}, or omit the session"
        raise OptionError("nnodes", problem)
    surely = least * asked.nproc_per_node
    if (last := max((pull.rank or 0 for pull in asked.pull), default=0)) >= surely:
        nodes = f"{least} node{'s' if least > 1 else ''}"
        problem = f"rank {last} is not there on {nodes}: use a rank below {surely}, or @all"
        raise OptionError("pull", problem)


def check_later(asked: SimpleNamespace, engine: str) -> None:
    """Check what is asked of any cell, also a session's later one.

    Raises:
        OptionError: Something is that works on this machine alone.
    """
    if asked.cold and engine not in HERE:
        why = "it starts the ranks without a preloaded process anyway"
        problem = f"not available with --engine {engine}, because {why}: omit {spelling('cold')}"
        raise OptionError("cold", problem)


def describe(engine: str, each: int, least: int, most: int, granted: int = 0) -> str:
    """Return the line that says where the ranks run.

    Args:
        engine: What starts them.
        each: Number of ranks on a node.
        least: Fewest nodes that will do.
        most: Most nodes that are wanted.
        granted: How many there are; 0 while that is not known.
    """
    low, high = (granted, granted) if granted else (least, most)
    nodes = f"{_span(low, high)} node{'s' if high > 1 else ''}"
    ranks = f"{_span(low * each, high * each)} rank{'s' if high * each > 1 else ''}"
    asked = f", {_span(least, most)} nodes" if granted and least < most else ""
    return f"{ranks} = {nodes} x {each} ({engine}{asked})"


def _span(low: int, high: int) -> str:
    return str(high) if low == high else f"{low} to {high}"
