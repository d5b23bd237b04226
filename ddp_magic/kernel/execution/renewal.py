"""Between two cells of a session: its process group, which a failed cell leaves out of step."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence

from ddp_magic.display.rank import Rank
from ddp_magic.kernel.worker_group.group import POLL_S, WorkerGroup
from ddp_magic.wire.events import WorkerExited
from ddp_magic.wire.kernel_events import Doing, Note, RunEvent
from ddp_magic.wire.worker_events import Error, WorkerReady

# For the ranks to create their process group again. On a GPU, what was asked of it before is done
# first: a thousand products of large matrices took 20 s.
RENEW_S = 60.0


def prepare_next_cell(
    group: WorkerGroup,
    ranks: Sequence[Rank],
    *,
    name: str,
    succeeded: bool,
    wants_process_group: bool,
    stopped: Callable[[], bool],
    limit_s: float = RENEW_S,
) -> Iterator[list[RunEvent]]:
    """Make a session ready for its next cell, or end it.

    Args:
        group: The session's ranks.
        ranks: What is known of them after the cell.
        name: Name of the session.
        succeeded: Whether the cell succeeded on every rank.
        wants_process_group: Whether the session has a default process group.
        stopped: Returns whether Stop was pressed.
        limit_s: How long to wait for the ranks' new process group, in seconds.

    Yields:
        What happened, at least every `POLL_S` seconds while the ranks are waited for.
    """
    if group.ended or any(rank.code is not None for rank in ranks):
        group.close()  # without one of its ranks it could run no other cell
        yield [Note(text=f"session {name} ended because its ranks ended")]
        return
    if broken := {rank.rank: rank.cuda_error for rank in ranks if rank.cuda_error}:
        rank, problem = next(iter(broken.items()))
        text = (
            f"session {name}: rank {rank} can no longer use its GPU ({problem}), and its values "
            "there are lost. Pull what you need from the CPU, then end the session with "
            f"%ddp_stop {name} and run its cells again"
        )
        yield [Note(text=text)]
    if not wants_process_group or (succeeded and all(rank.has_group for rank in ranks)):
        return
    yield [Doing(text="re-creating the process group")]
    problem = yield from _renew(group, len(ranks), stopped, limit_s)
    if problem:
        group.close()
        text = f"session {name} ended: its process group could not be re-created ({problem})"
        yield [Note(text=text)]
        return
    why = "the cell destroyed it" if succeeded else "ranks may have been out of step"
    text = (
        f"session {name}: variables are kept; the process group was re-created because {why}: "
        "create DDP objects and groups again"
    )
    yield [Note(text=text)]


def _renew(
    group: WorkerGroup, nproc: int, stopped: Callable[[], bool], limit_s: float
) -> Generator[list[RunEvent], None, str]:
    """Returns what went wrong; empty if nothing did."""
    group.renew_process_group()
    deadline = time.monotonic() + limit_s
    ready: set[int] = set()
    while len(ready) < nproc:
        outputs: list[RunEvent] = []
        for event in group.poll(POLL_S):
            match event:
                case WorkerReady(rank=rank):
                    ready.add(rank)
                case Error(rank=rank, ename=ename, evalue=evalue):
                    return f"rank {rank} raised {ename}: {evalue}"
                case WorkerExited(rank=rank):
                    return f"rank {rank} ended"
                case _:
                    outputs.append(event)
        yield outputs
        if stopped():
            return "Stop was pressed"
        if time.monotonic() > deadline:
            return "not all ranks answered"
    return ""
