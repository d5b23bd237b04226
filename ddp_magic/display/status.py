"""The live table, the closing line and `%ddp_status`, as text and as HTML."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from ddp_magic.display.diagnosis.diagnose import describe_exit, headline
from ddp_magic.display.diagnosis.restarts import closing_words, count_words
from ddp_magic.display.labels import FONT
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import RunRecord
from ddp_magic.system.processes import exit_words
from ddp_magic.wire.forkserver_status import ForkserverStatus
from ddp_magic.wire.kernel_events import StackDumped
from ddp_magic.wire.states import State

SILENT_S = 5.0  # without a heartbeat for this long, something holds the interpreter lock
MAX_NAMES = 8
REASON_CHARS = 200

FINISHED = "finished"
OUTCOMES = {
    State.PENDING: "starting",
    State.RUNNING: "running",
    State.SUCCEEDED: "ok",
    State.FAILED: "failed",
    State.CANCELLED: "stopped",
}


def _count(run: RunRecord) -> str:
    count = len(run.ranks)
    return f"{count} rank{'s' if count > 1 else ''}"


def summary(run: RunRecord, *, with_clock: bool = False) -> str:
    """Return a run's closing line: `4 ranks · 5.5 s · ok`.

    Args:
        run: The run.
        with_clock: Whether to say at what time of day it ended.
    """
    words = [_count(run), _duration(run.elapsed_s)]
    words += [clock(run.ended or time.time())] if with_clock else []
    words.append(OUTCOMES[run.state])
    if run.checked is not None:
        words.append(f"checked {run.checked} collective{'s' if run.checked != 1 else ''}")
    succeeded = run.state is State.SUCCEEDED
    words += filter(None, [closing_words(run.restarts, with_reasons=succeeded)])
    if succeeded and run.stayed and not run.session:
        shown, more = run.stayed[:MAX_NAMES], len(run.stayed) - MAX_NAMES
        names = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
        words.append(f"stayed in the ranks: {names} (--pull NAME, or --session)")
    if run.state is State.FAILED and run.error is not None:
        reason = headline(getattr(run.error, "shown", "") or str(run.error))
        words.append(reason if len(reason) <= REASON_CHARS else reason[:REASON_CHARS] + " ...")
    return " · ".join(words)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def clock(seconds: float) -> str:
    """Return a time of day, `14:03:12`.

    Args:
        seconds: Since the epoch.
    """
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def rank_state(rank: Rank, now: float) -> str:
    """Return what a rank is doing, or how it ended, in a few words."""
    if (error := rank.error or rank.held) is not None:
        return f"raised {error.ename}" + (", asks" if rank.question else "")
    if rank.code == 0 or rank.idle:
        return FINISHED
    if rank.code is not None:
        if rank.code < 0:
            return exit_words(rank.code)
        return f"exit code {rank.code}" if rank.finished else describe_exit(rank.code).split(",")[0]
    if (silent_s := rank.silent_s(now)) > SILENT_S:
        return f"silent for {silent_s:.0f} s"
    return rank.phase.value if rank.question is None else "asks"


def rank_memory(rank: Rank) -> str:
    """Return the memory of a rank, with unit; empty if it is not known."""
    if not rank.rss_mib:
        return ""
    device = f" + {rank.device_mib:,.0f} on the GPU" if rank.device_mib else ""
    return f"{rank.rss_mib:,.0f} MiB{device}"


def rank_cells(rank: Rank, now: float) -> tuple[str, ...]:
    """Return the columns that both tables share: rank, pid, device, state, line."""
    pid = str(rank.pid or "")
    line = f"{rank.cell.removeprefix('Cell ')}:{rank.line}".lstrip(":") if rank.line else ""
    device = " ".join(filter(None, [rank.node, rank.device]))
    return (str(rank.rank), pid, device, rank_state(rank, now), line)


def attempt_words(run: RunRecord) -> list[str]:
    """Return which restart it is, or how many there were; empty if there was none."""
    if not run.restarts:
        return []
    if run.ended is not None:
        return [closing_words(run.restarts, with_reasons=False)]
    return [count_words(len(run.restarts), run.max_restarts)]


def grid(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return a table as lines of text, without the columns that are empty."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [[head[i] for i in kept], *([row[i] for i in kept] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(kept))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def html_line(text: str) -> str:
    """Return a line as HTML, in the table's font and margin."""
    return f'<div style="padding:1px 8px;{FONT}">{html.escape(text)}</div>'


def html_grid(
    head: tuple[str, ...], rows: Sequence[tuple[str, ...]], colors: Sequence[str] = ()
) -> str:
    """Return a table as HTML, without the columns that are empty.

    Args:
        head: Names of the columns.
        rows: Their contents.
        colors: The color of each row's first cell; empty for the text's own.
    """
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    style = f"text-align:left;padding:1px 8px;white-space:pre;{FONT}"
    top = "".join(f'<th style="{style}">{head[i]}</th>' for i in kept)
    body = ""
    for number, row in enumerate(rows):
        color = f";color:{colors[number]}" if colors and colors[number] else ""
        cells = [
            f'<td style="{style}{"" if i else color}">{html.escape(row[i])}</td>' for i in kept
        ]
        body += f"<tr>{''.join(cells)}</tr>"
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


class Status:
    """The output of `%ddp_status`: HTML in a notebook, text in a terminal.

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
        self._runs = runs
        self._head = forkserver_lines(preloading) if preloading is not None else []
        self._head += [line for session in sessions for line in session_lines(session)]
        self._background = list(background)
        if not runs and not background and not ended:
            self._head.append(_NOTHING)
        self._foot = [_ENDED, *(f"  {line}" for line in ended)] if ended else []

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
            + "".join(f"<pre>{html.escape(text)}</pre>" for text in self._background)
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
        words = [f"run {run.id}", run.label, run.state.value, _count(run)]
        words += filter(None, [run.where])
        if run.background is not None:
            words.append("detached" if run.background.detached else "in the background")
        words += [f"started {clock(run.started)}", _duration(run.elapsed_s), *attempt_words(run)]
        words.append(f"logs in {run.logs}")
        return " · ".join(words)


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
        words = [f"rank {rank.rank}", f"pid {rank.pid}" if rank.pid else "", rank_state(rank, now)]
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


_ENDED = "of notebooks that have ended, since yesterday (%ddp_show RUN shows one again):"
_NOTHING = "Nothing has run yet. Start a cell with %%ddp -n 2; %ddp? lists the options."
_STATUS_COLUMNS = ("rank", "pid", "device", "state", "line", "time", "memory")


def _status_rows(run: RunRecord) -> list[tuple[str, ...]]:
    now = time.time() if run.ended is None else run.ended
    return [
        (*rank_cells(rank, now), _duration((rank.ended or now) - _began(run)), rank_memory(rank))
        for rank in run.ranks
    ]


def _began(run: RunRecord) -> float:
    return run.attempt_started if run.restarts else run.started
