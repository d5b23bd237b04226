"""The event loop of one cell: takes what its ranks report, and sends them commands, until they end.

`stop` decides when a run is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ddp_magic.display.diagnosis.verdict import StopReason
from ddp_magic.display.question_box import Box
from ddp_magic.display.record import RunRecord, Screen
from ddp_magic.engines import Engine
from ddp_magic.kernel import several_nodes
from ddp_magic.kernel.execution.case import Case
from ddp_magic.kernel.execution.cell_sender import CellSender
from ddp_magic.kernel.execution.flood import Flood
from ddp_magic.kernel.execution.questions import Questions
from ddp_magic.kernel.execution.renewal import prepare_next_cell
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.execution.run_values import RunValues
from ddp_magic.kernel.execution.stop import Stopper
from ddp_magic.kernel.watch.collective_watch import CollectiveWatch
from ddp_magic.kernel.watch.profiling import Profiling
from ddp_magic.kernel.watch.stacks import Stacks
from ddp_magic.kernel.worker_group.group import POLL_S, WorkerGroup
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.commands import HoldTimeouts
from ddp_magic.wire.kernel_events import (
    Doing,
    GroupEnded,
    NodesGranted,
    Note,
    PulledValues,
    Restarted,
    RunEvent,
)
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import Error, Question


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of.

    Attributes:
        options: How it runs.
        directory: Where its files are.
        group: Its ranks.
        sender: Sends them the cell, and what that takes along.
        stopper: Ends them.
        values: Takes what they send back.
        profiling: Takes what they measure.
        stacks: Takes where they are.
        case: Explains how they ended.
        hang_s: A shorter wait of ranks for others is not explained, in seconds.
    """

    options: Options
    directory: RunDirectory
    group: WorkerGroup
    sender: CellSender
    stopper: Stopper
    values: RunValues
    profiling: Profiling
    stacks: Stacks
    case: Case
    hang_s: float

    def forget(self) -> None:
        """Let go of the notebook's values: a run is kept for a long time."""
        self.case.close()
        self.values.forget()


class EventLoop:
    """Follows a run, and drives it.

    Args:
        run: What is known of it; kept up to date.
        parts: What it is made of.
        screen: Where it is shown.
        box: Where a person answers what the ranks ask; None for nowhere.
    """

    def __init__(self, run: RunRecord, parts: Parts, screen: Screen, box: Box | None) -> None:
        self._run = run
        self._screen = screen
        self._options = parts.options
        self._group = parts.group
        self._sender = parts.sender
        self._stopper = parts.stopper
        self._parts = parts
        self._questions = Questions(box)
        self._watch = self._new_watch()
        self._gives_up = False
        self._flood = Flood()
        self._queued_s = 0.0  # until ranks began to start
        self._queued_since_s: float | None = 0.0

    def _new_watch(self) -> CollectiveWatch:
        return CollectiveWatch(self._options, self._parts.directory, self._parts.hang_s)

    def follow(self, engine: Engine, sys_path: list[str]) -> None:
        """Start the ranks, or take those of the session, and follow them to the end of the cell.

        Args:
            engine: What places the agent.
            sys_path: The ranks' module search path.
        """
        if self._group.started:
            self.take(self._group.rejoin())
        else:
            self._sender.start(engine, sys_path, self._parts.profiling.environment())
        self._sender.send_values()
        while not self._over:
            self._step()
        self._conclude()

    def close(self) -> None:
        """Ask nothing more."""
        self._questions.stop()

    # --- while it goes on ---------------------------------------------------------------------

    def _step(self) -> None:
        run, group, stacks = self._run, self._group, self._parts.stacks
        if self._stopper.reason is None and self._is_ready:
            self._send_cell()
        events = group.poll(min(POLL_S, self._screen.wait_s))
        self._flood.read(events)
        self.take(events)
        self.take(self._answers())
        if self._queued_since_s is not None and group.placed:
            self._queued_s += run.elapsed_s - self._queued_since_s
            self._queued_since_s = None
        run.where = group.where
        if self._watch.look(run.ranks):
            run.waits = self._watch.waits
        self.take(stacks.of_silent(run.ranks, self._parts.hang_s, group.dump_stack))
        self._screen.tick(run)
        if self._stopper.reason is None:
            self._look_for_stop()
        self.take(self._stopper.step())

    @property
    def _over(self) -> bool:
        if self._group.ended:
            return True
        if not self._group.kept or any(rank.busy for rank in self._run.ranks):
            return False
        return any(rank.code is None for rank in self._run.ranks)  # else the group ends by itself

    @property
    def _is_ready(self) -> bool:
        return not self._sender.sent and all(rank.ran for rank in self._run.ranks)

    def _send_cell(self) -> None:
        run = self._run
        run.state = State.RUNNING
        if run.restarts:
            run.doing = ""
        for rank in run.ranks:
            rank.began = time.time()
        last = len(run.restarts) >= run.max_restarts
        self._sender.send_cell(self._questions, last_attempt=last)

    def _answers(self) -> Iterator[RunEvent]:
        """Send the ranks what was answered."""
        for answered in self._questions.step():
            if answered.answer is not None:
                self._group.answer(answered.rank, answered.answer)
            if answered.event is not None:
                yield answered.event

    def _look_for_stop(self) -> None:
        """Begin to end the ranks, if there is a reason to."""
        reason = self._stopper.look(
            elapsed_s=self._counted_s,
            mismatch=self._watch.differs(self._run.ranks),
            starting=not self._sender.sent,
        )
        if reason is not None:
            self._questions.stop()
            if reason is not StopReason.PEER_FAILED:  # that the others wait is a consequence
                self._watch.remember_waits(self._run.ranks)

    @property
    def _counted_s(self) -> float:
        """How much of the time limit is used, in seconds: imports before the start are not."""
        since = self._queued_since_s
        until = self._run.elapsed_s if since is None else since
        return until - self._queued_s - self._questions.waited_s

    # --- events -------------------------------------------------------------------------------

    def take(self, events: Iterable[RunEvent]) -> None:
        """Note and show what has happened."""
        for event in events:
            match event:
                case Doing(text="") if self._stopper.reason:
                    continue  # news of the start: what is worth a word is that it stops
                case Restarted():
                    self._restart(event)
                    continue
                case NodesGranted():
                    self._begin_with(event)
                case Note() | GroupEnded():
                    pass
                case _ if self._gives_up:
                    continue  # of ranks that are being ended; what is known of the others stays
                case PulledValues():
                    self._parts.values.take(event)
                case Error() if self._stopper.reason is None:
                    self._watch.remember_waits(self._run.ranks)
                case Question() if not self._questions.waiting:
                    self._group.send(HoldTimeouts())
            self._run.take(event)
            self._screen.take(event)
            self._questions.take(event)

    def _begin_with(self, event: NodesGranted) -> None:
        """Say how many ranks there are: the cluster has chosen."""
        self._describe(event.nnodes)
        self._parts.values.begin_attempt(event.nproc)
        self.take([Note(text=self._run.devices)])

    def _describe(self, granted: int) -> None:
        """Note on how many nodes the ranks are, or may be while that is 0."""
        options = self._options
        self._run.devices = several_nodes.describe(
            options.engine, options.nproc_per_node, options.min_nodes, options.nnodes, granted
        )

    def _restart(self, event: Restarted) -> None:
        """Note why the ranks are restarted, and begin anew with them."""
        run, parts = self._run, self._parts
        self.take(self._watch.finish(run.ranks))
        # Without its cell, a missing device or an unknown backend: it would fail again.
        cannot_start = not run.restarts and not self._sender.sent and event.lost is None
        if self._stopper.reason or cannot_start or self._watch.mismatch:
            self._gives_up = True
            self._group.kill()
            return
        self.take(parts.stacks.of_crashes(run.ranks))
        restart, lines = parts.case.restart(run, event, self._stopper, self._watch)
        run.restarts = (*run.restarts[: event.number - 1], restart)
        if event.lost is not None:
            self._queued_since_s = run.elapsed_s
            self._describe(0)
        run.take(event)
        self._screen.take(event)
        self.take(Note(text=line) for line in lines)
        self._watch.close()
        self._watch = self._new_watch()
        parts.values.begin_attempt(len(run.ranks))
        parts.profiling.begin_attempt()
        self._sender.send_values()

    # --- the end of the cell ------------------------------------------------------------------

    def _conclude(self) -> None:
        """Take the last that the ranks have said, and find out how they ended."""
        run, watch = self._run, self._watch
        self.take(self._group.drain())
        self.take(self._parts.stacks.of_crashes(run.ranks))
        run.waits = ()
        self.take(watch.finish(run.ranks))
        run.checked = watch.checked
        run.state, run.error = self._parts.case.verdict(run, self._stopper, watch)
        self.take(watch.warnings(run.ranks, run.state))
        if self._options.debug and self._questions.problem and any(r.error for r in run.ranks):
            text = f"{self._options.spelled('debug')}: no debugger: {self._questions.problem}"
            self.take([Note(text=text)])
        if self._group.kept:
            self._prepare_next_cell()

    def _prepare_next_cell(self) -> None:
        run, presses = self._run, self._stopper.presses
        pressed = presses.count
        for events in prepare_next_cell(
            self._group,
            run.ranks,
            name=run.session,
            succeeded=run.state is State.SUCCEEDED,
            wants_process_group=self._options.init_process_group,
            stopped=lambda: presses.count > pressed,
        ):
            for event in events:  # shown, and not the cell's: it has ended
                if isinstance(event, Doing):
                    run.doing = event.text
                self._screen.take(event)
            self._screen.tick(run)
