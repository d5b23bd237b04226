"""What `%ddp_status` shows, as text and as HTML."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from ddp_magic.display.grid import grid, html_grid, html_line
from ddp_magic.display.labels import FONT
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import RunRecord
from ddp_magic.display.run_words import (
    OUTCOMES,
    attempt_words,
    clock,
    duration,
    rank_cells,
    rank_count,
    rank_memory,
    rank_state,
    why_failed,
)
from ddp_magic.wire.forkserver_status import ForkserverStatus
from ddp_magic.wire.kernel_events import StackDumped

MAX_EARLIER = 20  # runs of this notebook that are listed without their ranks


class Status:
    """The output of `%ddp_status`: HTML in a notebook, text in a terminal.

    The ranks have a table in runs that go on and in the newest one; earlier runs have a line.

    Args:
        runs: The runs to show, newest first.
        preloading: The forkserver's status, shown above the runs; None to omit it.
        sessions: The sessions, shown above the runs.
        ended: Lines on runs of notebooks that have ended, shown below the runs.
        background: What the hosts of background runs say, shown above the runs.
    """

    def __init__(
        self,
        runs: list[RunRecord],
        preloading: ForkserverStatus | None = None,
        sessions: Iterable[SessionStatus] = (),
        ended: Sequence[str] = (),
        background: Sequence[str] = (),
    ) -> None:
        self._runs = [run for run in runs if run.ended is None or run is runs[0]]
        self._head = forkserver_lines(preloading) if preloading is not None else []
        self._head += [line for session in sessions for line in session_lines(session)]
        self._background = list(background)
        if not runs and not background and not ended:
            self._head.append(_NOTHING)
        earlier = [_line(run) for run in runs[1:] if run.ended is not None]
        self._foot = _block(_EARLIER, earlier[:MAX_EARLIER]) + _block(_ENDED, ended)

    def __repr__(self) -> str:
        runs = [
            "\n".join([self.title(run), *run.waits, *grid(_STATUS_COLUMNS, _status_rows(run))])
            for run in self._runs
        ]
        blocks = ["\n".join(self._head), *self._background, *runs, "\n".join(self._foot)]
        return "\n\n".join(filter(None, blocks))

    def _repr_html_(self) -> str:
        return (
            "".join(html_line(line) for line in self._head)
            + "".join(map(_html_block, self._background))
            + "".join(
                f"<div><b>{html.escape(self.title(run))}</b></div>"
                + "".join(map(html_line, run.waits))
                + html_grid(_STATUS_COLUMNS, _status_rows(run))
                for run in self._runs
            )
            + "".join(map(html_line, self._foot))
        )

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:  # noqa: ANN401 -- IPython's protocol
        printer.text(repr(self))

    @staticmethod
    def title(run: RunRecord) -> str:
        """Return a run's id, cell, state, start and logs, in a line."""
        words = [f"run {run.id}", run.label, run.state.value, rank_count(run)]
        words += filter(None, [run.where])
        if run.background is not None:
            words.append("detached" if run.background.detached else "in the background")
        words += [f"started {clock(run.started)}", duration(run.elapsed_s), *attempt_words(run)]
        words.append(f"logs in {run.logs}")
        return " · ".join(words)


def _line(run: RunRecord) -> str:
    """Return a run that has ended in one line."""
    words = [f"run {run.id}", run.label, rank_count(run), duration(run.elapsed_s)]
    words += [OUTCOMES[run.state], why_failed(run), f"started {clock(run.started)}"]
    return " · ".join(filter(None, words))


def _block(title: str, lines: Sequence[str]) -> list[str]:
    return [title, *(f"  {line}" for line in lines)] if lines else []


def _html_block(text: str) -> str:
    """Return what a host says of its run as HTML: the title, and a table of text below it."""
    title, _, table = text.partition("\n")
    head = f"<div><b>{html.escape(title)}</b></div>"
    style = f"margin:0;padding:1px 8px;white-space:pre-wrap;{FONT}"
    return head + (f'<pre style="{style}">{html.escape(table)}</pre>' if table else "")


def stack_lines(run: RunRecord, stacks: Iterable[StackDumped]) -> list[str]:
    """Return the stacks of a run's ranks, and what its ranks wait for.

    Args:
        run: The run.
        stacks: What its ranks wrote.
    """
    frames = {stack.rank: stack.frames for stack in stacks}
    lines = [Status.title(run), *run.waits]
    now = time.time()
    for rank in run.ranks:
        name = f"rank {rank.rank}" + (f" on {rank.node}" if rank.node else "")
        words = [name, f"pid {rank.pid}" if rank.pid else "", rank_state(rank, now)]
        lines.append(" · ".join(filter(None, words)))
        if rank.rank in frames:
            lines += [f"    {frame}" for frame in frames[rank.rank]] or [f"    {_outside(rank)}"]
        elif rank.busy and rank.pid is not None:
            lines.append("    it wrote no stack: its process may be stopped")
    return lines


def _outside(rank: Rank) -> str:
    """Return where a rank is whose stack has no frame of the cell."""
    if not rank.full_place:
        return "not in the cell"
    call = f", in {rank.call}" if rank.call else ""
    return f"it awaits something at {rank.full_place}{call}"


def forkserver_lines(preloading: ForkserverStatus) -> list[str]:
    """Return the forkserver's state, its preloaded libraries and those left to the ranks."""
    words = ["forkserver", preloading.state]
    if preloading.pid is not None:
        words += [f"pid {preloading.pid}", f"{preloading.pss_mib:,.0f} MiB"]
    lines = [" · ".join(words)]
    if preloading.libraries:
        lines.append("  preloaded: " + ", ".join(preloading.libraries))
    for name, reason in preloading.left_out.items():
        lines.append(f"  left to the ranks: {name} ({reason})")
    return lines


@dataclass(frozen=True)
class SessionStatus:
    """A session in `%ddp_status`.

    Attributes:
        name: The user's name for it.
        devices: A line that names the devices of its ranks.
        pids: The ranks' process ids, by rank.
    """

    name: str
    devices: str
    pids: Mapping[int, int]


def session_lines(session: SessionStatus) -> list[str]:
    """Return a line for a session and one for each of its ranks."""
    lines = [f"session {session.name} · {session.devices} · %ddp_stop {session.name}"]
    for rank, pid in sorted(session.pids.items()):
        try:
            rss_mib = psutil.Process(pid).memory_info().rss / 2**20
        except psutil.Error:
            continue
        lines.append(f"  rank {rank} · pid {pid} · {rss_mib:,.0f} MiB")
    return lines


_EARLIER = "earlier runs of this notebook (%ddp_status RUN shows the ranks of one):"
_ENDED = "of notebooks that have ended, since yesterday (%ddp_show RUN shows one again):"
_NOTHING = "Nothing has run yet. Start a cell with %%ddp -n 2; %ddp? lists the options."
_STATUS_COLUMNS = ("rank", "pid", "device", "state", "line", "time", "memory")


def _status_rows(run: RunRecord) -> list[tuple[str, ...]]:
    now = time.time() if run.ended is None else run.ended
    return [
        (*rank_cells(rank, now), duration((rank.ended or now) - _began(run)), rank_memory(rank))
        for rank in run.ranks
    ]


def _began(run: RunRecord) -> float:
    return run.attempt_started if run.restarts else run.started
