"""A run and its ranks in a few words: the closing line, what a rank is doing, how long, when."""

from __future__ import annotations

import time

from ddp_magic.display.diagnosis.first_failure import describe_exit, headline
from ddp_magic.display.diagnosis.restarts import closing_words, count_words
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import RunRecord
from ddp_magic.system.processes import exit_words
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


def rank_count(run: RunRecord) -> str:
    """Return how many ranks a run has: `4 ranks`."""
    count = len(run.ranks)
    head = f"{run.fewest} to " if run.fewest else ""  # the cluster has not chosen
    return f"{head}{count} rank{'s' if count > 1 else ''}"


def summary(run: RunRecord, *, with_clock: bool = False) -> str:
    """Return a run's closing line: `4 ranks · 5.5 s · ok`.

    Args:
        run: The run.
        with_clock: Whether to say at what time of day it ended.
    """
    words = [rank_count(run), duration(run.elapsed_s)]
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
    return " · ".join(filter(None, [*words, why_failed(run)]))


def head_line(devices: str, started: float, outcome: str = "") -> str:
    """Return the line above a run's output: `4 ranks on the CPU · 14:03:12`.

    Args:
        devices: On what the ranks run.
        started: When, in seconds since the epoch.
        outcome: The closing line, where that is out of sight; empty for none.
    """
    _, _, words = outcome.partition(" · ")  # without the number of ranks
    return " · ".join(filter(None, [devices, clock(started), words]))


def why_failed(run: RunRecord) -> str:
    """Return why a run has failed, in one line; empty if it has not."""
    if run.state is not State.FAILED or run.error is None:
        return ""
    line = headline(getattr(run.error, "shown", "") or str(run.error))
    return line if len(line) <= REASON_CHARS else line[:REASON_CHARS] + " ..."


def duration(seconds: float) -> str:
    """Return a duration: `5.5 s`, `2 min 3 s`, `1 h 10 min`."""
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
