"""Plays a fault in a real kernel, and records what a user sees and what is left."""

from __future__ import annotations

import functools
import os
import re
import signal
import time
from dataclasses import dataclass, field

import psutil

from tests.chaos.draw import Draw
from tests.chaos.notebook import Cell, Notebook
from tests.chaos.programs import SESSION
from tests.integration.kernel import Result
from tests.limits import HANG_S

LEFT_S = 3.0
AGENT_S = 5.0  # after the end of an agent, the cell has ended
LATER_S = 0.5  # from a rank that waits to Stop
_SUM = "t = torch.ones(1); dist.all_reduce(t); print('sum', t.item(), globals().get('kept'))"
BESIDE = (
    "%%ddp -n 2\nimport time\nfor _ in range(60):\n    t = torch.ones(1); dist.all_reduce(t)\n"
    "    time.sleep(0.02)\nprint('sum', t.item())"
)


@dataclass
class Seen:
    """What was seen of a fault.

    Attributes:
        played: Whether the fault came; if not, why not is in `why_not`.
        ended: Whether the cell ended.
        late_s: From the fault to the cell's end, in seconds.
        result: What the cell showed.
        left: Processes that were left over 3 s after the cell, or after the session's end.
        stray: Files that were left over.
        next: What the next cell showed; None if the kernel was ended.
        beside: What the other notebook's cell showed.
        stopped: What `%ddp_stop` said of the session.
        stacks: Of the kernel, if the cell did not end.
    """

    played: bool = True
    why_not: str = ""
    ended: bool = False
    late_s: float = 0.0
    result: Result = field(default_factory=Result)
    left: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    next: Result | None = None
    beside: Result | None = None
    stopped: str = ""
    stacks: str = ""


def play(draw: Draw, notebook: Notebook, other: Notebook) -> Seen:
    """Play a fault.

    Args:
        draw: Which.
        notebook: Where.
        other: The notebook that may run a cell at the same time.
    """
    return _Scene(draw, notebook, other).play()


class _Scene:
    def __init__(self, draw: Draw, notebook: Notebook, other: Notebook) -> None:
        self._draw = draw
        self._notebook = notebook
        self._other = other
        self._seen = Seen()
        self._kernel = notebook.kernel
        self._fault_at = time.monotonic()

    def play(self) -> Seen:
        draw, seen = self._draw, self._seen
        if draw.kept == "session":
            before = f"%%ddp -n {draw.ranks} --session {SESSION}\nkept = rank"
            assert self._kernel.run(before).status == "ok"
        beside = Cell(self._other.kernel, BESIDE) if draw.neighbor else None
        if draw.fault == "kernel without descriptors":
            self._notebook.limit_descriptors(draw.spare)
        self._cell = Cell(self._kernel, draw.cell)
        self._wait_for_the_moment()
        if seen.played:
            self._strike()
        if draw.cause.ends_kernel and seen.played:
            self._without_kernel()
        else:
            self._to_the_end()
        if beside is not None:
            if not beside.watch(HANG_S):
                self._other.discard()
            seen.beside = beside.result
        return seen

    def _wait_for_the_moment(self) -> None:
        draw, cell = self._draw, self._cell
        cell.watch(HANG_S, busy=True)
        self._fault_at = time.monotonic()
        if not draw.early:
            cell.watch(HANG_S, until=f"up {draw.rank} pid=")
            cell.watch(0.01, until="\n")
            self._fault_at = time.monotonic()
        if not draw.cause.in_python and not draw.cause.timer and draw.time_limit_s is None:
            cell.watch(draw.when_s)
        comes_before = draw.time_limit_s is not None or draw.fault == "kernel without descriptors"
        if cell.ended and not comes_before:
            self._miss("the cell ended before")
        elif not cell.ended:
            self._fault_at = max(self._fault_at + draw.when_s, time.monotonic())

    def _miss(self, why: str) -> None:
        self._seen.played, self._seen.why_not = False, why

    def _strike(self) -> None:
        cause = self._draw.cause
        if cause.sends:
            self._signal(self._rank_pid(), cause.sends)
        elif cause.act:
            getattr(self, f"_{cause.act}")()

    def _rank_pid(self) -> int | None:
        found = re.search(rf"up {self._draw.rank} pid=(\d+)\.", self._cell.result.text)
        return int(found.group(1)) if found else None

    def _agent_pid(self) -> int | None:
        try:
            rank = self._rank_pid()
            return psutil.Process(rank).ppid() if rank else None
        except psutil.NoSuchProcess:
            return None

    def _signal(self, pid: int | None, name: str) -> None:
        try:
            if pid is not None:
                os.kill(pid, signal.Signals[name])
                return
        except ProcessLookupError:
            pass
        self._miss("the process was not there")

    # --- the faults that the player brings ------------------------------------------------------

    def _stop(self) -> None:
        self._kernel.interrupt()

    def _lift_limit(self) -> None:
        """Stop what the kernel could start all the same."""
        if not self._cell.ended:
            self._stop()
        self._cell.watch(HANG_S)
        self._notebook.restore_descriptors()

    def _stop_twice(self) -> None:
        self._stop()
        self._cell.watch(self._draw.gap_s)
        if not self._cell.ended:
            self._stop()

    def _stop_about_then(self) -> None:
        """Press Stop half a second around another fault."""
        moment = self._fault_at + self._draw.gap_s / 2 - LATER_S
        self._cell.watch(max(moment - time.monotonic(), 0.0))
        if not self._cell.ended:
            self._stop()

    def _kill_about_then(self) -> None:
        """Kill the rank, and press Stop, one within a second of the other."""
        gap_s = self._draw.gap_s - 1
        kill = functools.partial(self._signal, self._rank_pid(), "SIGKILL")
        first, second = (self._stop, kill) if gap_s < 0 else (kill, self._stop)
        first()
        self._cell.watch(abs(gap_s) / 2)
        if not self._cell.ended:
            second()
        self._seen.played, self._seen.why_not = True, ""  # Stop may have ended it by then

    def _kill_worker(self) -> None:
        """Kill a child of the rank's."""
        try:
            children = psutil.Process(self._rank_pid()).children()
        except psutil.NoSuchProcess:
            children = []
        self._signal(children[-1].pid if children else None, "SIGKILL")

    def _freeze(self) -> None:
        self._signal(self._rank_pid(), "SIGSTOP")
        self._cell.watch(LATER_S)
        self._stop()

    def _freeze_agent(self) -> None:
        self._signal(self._agent_pid(), "SIGSTOP")
        self._cell.watch(LATER_S)
        self._stop()

    def _kill_agent(self) -> None:
        self._signal(self._agent_pid(), "SIGKILL")

    def _end_agent(self) -> None:
        self._signal(self._agent_pid(), "SIGTERM")

    def _kill_starting_agent(self) -> None:
        agent = self._notebook.starting_agent(HANG_S)
        self._fault_at = time.monotonic()
        self._signal(agent, "SIGKILL")
        self._cell.watch(AGENT_S)
        if not self._cell.ended:
            self._miss("it was another agent")
            self._stop()

    def _kill_forkserver(self) -> None:
        forkserver = self._kernel.forkserver()
        self._signal(forkserver.pid if forkserver else None, "SIGKILL")

    def _kill_forkserver_and_agent(self) -> None:
        agent = self._agent_pid()
        self._kill_forkserver()
        self._cell.watch(self._draw.gap_s / 10)
        self._signal(agent, "SIGKILL")

    def _fill_disk(self) -> None:
        if not self._notebook.fill_disk():
            self._miss("no disk of its own: not root")

    def _remove_directory(self) -> None:
        self._notebook.remove_runs()

    def _kill_kernel(self) -> None:
        self._kernel.kill()

    def _kill_kernel_and_agent(self) -> None:
        agent = self._agent_pid()
        self._kernel.kill()
        time.sleep(self._draw.gap_s / 10)
        self._signal(agent, "SIGKILL")
        self._seen.played, self._seen.why_not = True, ""  # it may be gone by then

    def _shut_kernel_down(self) -> None:
        self._kernel.manager.shutdown_kernel(now=False)

    def _restart_kernel(self) -> None:
        self._kernel.manager.restart_kernel(now=True)
        self._kernel.client.wait_for_ready(timeout=HANG_S)

    # --- what comes then ------------------------------------------------------------------------

    def _without_kernel(self) -> None:
        restarted = self._draw.fault == "kernel restarted"
        self._seen.ended = True
        self._seen.left = self._notebook.left(LEFT_S, kernel_gone=not restarted)
        if restarted:
            self._notebook.load()
            self._seen.next = self._next_cell()
            self._end_session()
        else:
            self._notebook.discard()

    def _to_the_end(self) -> None:
        draw, seen, cell = self._draw, self._seen, self._cell
        if draw.needs_stop:
            cell.watch(draw.when_s + 2 * LATER_S)
            self._fault_at = time.monotonic()
            self._stop()
        seen.ended = cell.watch(HANG_S)
        seen.result = cell.result
        seen.late_s = cell.ended_at - self._fault_at
        if not seen.ended:
            seen.late_s = HANG_S
            seen.stacks = self._notebook.stacks()
            self._notebook.discard()
            return
        self._notebook.restore_descriptors()
        if draw.kept != "session":
            seen.left = self._notebook.left(LEFT_S)
        seen.next = self._next_cell()
        self._end_session()

    def _next_cell(self) -> Result:
        draw = self._draw
        options = "-n 2"
        if draw.kept == "session":
            options = f"-n {draw.ranks} --session {SESSION}"
        cell = Cell(self._kernel, f"%%ddp {options}\n{_SUM}")
        if not cell.watch(HANG_S):
            cell.result.status = "hung"
            self._notebook.discard()
        return cell.result

    def _end_session(self) -> None:
        seen = self._seen
        if seen.next is None or seen.next.status == "hung":
            return
        if self._draw.kept == "session":
            seen.stopped = self._kernel.run(f"%ddp_stop {SESSION}").text
        seen.left += self._notebook.left(LEFT_S)
        seen.stray = self._notebook.stray_files()
        self._notebook.free_disk()
