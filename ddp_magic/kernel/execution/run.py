"""The event loop of one cell on one worker group, from its start to what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from ddp_magic.display.diagnosis.hangs import HANG_S
from ddp_magic.display.diagnosis.name_hints import Surroundings
from ddp_magic.display.diagnosis.verdict import StopReason
from ddp_magic.display.question_box import Box
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import Background, RunRecord, Screen, error_lines, value_lines
from ddp_magic.engines import Engine
from ddp_magic.errors import RunInterrupted
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.case import Case
from ddp_magic.kernel.execution.cell_sender import CellSender
from ddp_magic.kernel.execution.questions import Questions
from ddp_magic.kernel.execution.renewal import prepare_next_cell
from ddp_magic.kernel.execution.run_code import RunCode
from ddp_magic.kernel.execution.run_options import Options, group_of
from ddp_magic.kernel.execution.run_values import RunValues
from ddp_magic.kernel.execution.stop import Stopper
from ddp_magic.kernel.interrupts import interrupted_words
from ddp_magic.kernel.machine.limits import system_error
from ddp_magic.kernel.values.capture import Capture
from ddp_magic.kernel.watch.collective_watch import CollectiveWatch
from ddp_magic.kernel.watch.profiling import Profiling
from ddp_magic.kernel.watch.stacks import Stacks
from ddp_magic.kernel.worker_group.group import POLL_S, WorkerGroup
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.system.storage import process_storage
from ddp_magic.wire.commands import HoldTimeouts
from ddp_magic.wire.kernel_events import (
    Doing,
    GroupEnded,
    Note,
    PulledValues,
    Restarted,
    RunEvent,
    StackDumped,
)
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import Error, Question


class Run(RunRecord):
    """One cell on one worker group.

    Args:
        cell: What to run.
        options: How.
        capture: What it takes along from the notebook, and of the prelude.
        around: Where its names could have come from, for hints in errors.
        group: A session's ranks; None for ranks of its own.
        cell_files: The text of the session's cells by what they call themselves; this one is added.
        sources: Text and cell number of the functions that the session's cells have sent, by file;
            those of this one are added.
        hang_s: A shorter wait of ranks for others is not explained, in seconds.
        directory: A directory for it that has been made already; None to make one.
        background: What a host knows of a run that it serves; None for a run of this process.

    Attributes:
        directory: Where the cell is, and every rank's whole output unless it is a session's.
        captured: What the cell took along from the notebook: name, type, size.
        results: What was brought back, by the notebook's name for it; of `launch`, the function's
            values, one a rank.
    """

    def __init__(  # noqa: PLR0913 -- each is independent of the others
        self,
        cell: Cell,
        options: Options,
        *,
        capture: Capture | None = None,
        around: Surroundings | None = None,
        group: WorkerGroup | None = None,
        cell_files: dict[str, str] | None = None,
        sources: dict[str, list[Any]] | None = None,
        hang_s: float = HANG_S,
        directory: RunDirectory | None = None,
        background: Background | None = None,
    ) -> None:
        capture = capture or Capture()
        size = len(cell.source.encode())
        self.directory = directory or process_storage.new_run_directory(size)
        self._group = group or group_of(options, self.directory)
        logs = self._group.directory
        sources = {} if sources is None else sources
        sources.update(capture.command.sources if capture.command else {})
        self._code = RunCode(
            cell,
            self.directory.cell,
            cells={} if cell_files is None else cell_files,
            functions=sources,
            is_call=options.call,
        )
        super().__init__(
            id=self.directory.id,
            label=self._code.cell.label,
            cell_labels=self._code.labels,
            log_directory=logs,
            journal=self.directory.journal,
            devices=options.devices,
            session=options.session,
            show=options.show,
            quiet=options.quiet,
            max_restarts=options.max_restarts,
            background=background,
            ranks=[Rank(rank=r, log=logs.rank_log(r)) for r in range(options.nproc)],
        )
        self.options = options
        self.results: Any = {}
        self.captured = tuple(capture.values)
        self._notes = tuple(capture.notes)
        self._hang_s = hang_s
        self._sender = CellSender(
            self._group, cell, options, capture, self.directory, file=self._code.file
        )
        self._case = Case(
            cell.source,
            around or Surroundings(),
            prelude=self._sender.prelude,
            time_limit_s=options.time_limit_s,
        )
        self._values = RunValues(options, self.directory, kept=background is not None)
        self._watch = CollectiveWatch(options, self.directory, hang_s)
        self._questions = Questions(None)
        self._gives_up = False
        self._placed_after_s: float | None = None  # when the ranks began to start
        self._profiling = Profiling(options, self.directory, self._code)
        self._stacks = Stacks(logs, self._code.cell)
        self._stopper = Stopper(
            self._group,
            self.ranks,
            stack_of=self._stacks.of,
            time_limit_s=options.time_limit_s,
            kept=self._group.kept,
            again=f"%ddp_stop {self.id} again" if background else "press Stop again",
        )

    def __repr__(self) -> str:
        ranks = f"{len(self.ranks)} rank{'s' if len(self.ranks) > 1 else ''}"
        lines = [f"Run {self.id}: {self.state.value} · {ranks} · {self.elapsed_s:.1f} s"]
        lines += error_lines(self.error)
        lines += [f"  {restart}" for restart in self.restarts]
        return "\n".join(
            [*lines, *value_lines(self.results, self.captured), f"  logs: {self.logs}"]
        )

    # --- from the start to the end ------------------------------------------------------------

    def execute(
        self, screen: Screen, engine: Engine, sys_path: list[str], box: Box | None = None
    ) -> None:
        """Run the cell to its end. What went wrong is then in `error`; nothing is raised.

        Args:
            screen: Where it is shown.
            engine: What places the agent.
            sys_path: The ranks' module search path.
            box: Where a person answers what the ranks ask; None for nowhere.
        """
        self._questions = Questions(box)
        self.started = time.time()
        self.progress = screen.progress
        screen.start(self)
        notes = (*process_storage.take_notes(), *self._notes)
        self._take([Note(text=text) for text in notes], screen)
        with self._stopper.presses as counter:
            try:
                self._start(screen, engine, sys_path)
                self._follow(screen)
                self._take_results(screen)
            except OSError as error:
                self.error = system_error(error)
                self.state = State.RUNNING  # its ranks may be, and are ended
            finally:
                self._end()
            self._take_profile()
            self._case.close()  # the run is kept for a long time, the notebook's values are not
            self._values.forget()
            screen.finish(self)
            self.directory.tidy()
            process_storage.prune_in_background()
            if counter.count and not isinstance(self.error, KeyboardInterrupt):
                # The cells after this one are not to run; the ranks' own error is shown.
                shown = self.error._render_traceback_()[:-1] if self.error else ()
                self.error = RunInterrupted(interrupted_words(self), details=shown)

    def _start(self, screen: Screen, engine: Engine, sys_path: list[str]) -> None:
        if self._group.started:
            self._take(self._group.rejoin(), screen)
        else:
            self._sender.start(engine, sys_path, self._profiling.environment())
        self._sender.send_values()

    def _follow(self, screen: Screen) -> None:
        while not self._over:
            if self._stopper.reason is None and self._is_ready:
                self._send_cell()
            self._take(self._group.poll(min(POLL_S, screen.wait_s)), screen)
            self._take(self._answers(), screen)
            if self._placed_after_s is None and self._group.placed:
                self._placed_after_s = self.elapsed_s
            self.where = self._group.where
            if self._watch.look(self.ranks):
                self.waits = self._watch.waits
            silent = self._stacks.of_silent(self.ranks, self._hang_s, self._group.dump_stack)
            self._take(silent, screen)
            screen.tick(self)
            if self._stopper.reason is None:
                self._look_for_stop()
            self._take(self._stopper.step(), screen)
        self._take(self._group.drain(), screen)
        self._take(self._stacks.of_crashes(self.ranks), screen)
        self.waits = ()
        self._take(self._watch.finish(self.ranks), screen)
        self.checked = self._watch.checked
        self.state, self.error = self._case.verdict(self, self._stopper, self._watch)
        self._take(self._watch.warnings(self.ranks, self.state), screen)
        if self.options.debug and self._questions.problem and any(r.error for r in self.ranks):
            text = f"{self.options.spelled('debug')}: no debugger: {self._questions.problem}"
            self._take([Note(text=text)], screen)
        if self._group.kept:
            self._prepare_next_cell(screen)

    @property
    def _is_ready(self) -> bool:
        return not self._sender.sent and all(rank.ran for rank in self.ranks)

    def _send_cell(self) -> None:
        self.state = State.RUNNING
        if self.restarts:
            self.doing = ""
        for rank in self.ranks:
            rank.began = time.time()
        last = len(self.restarts) >= self.max_restarts
        self._sender.send_cell(self._questions, last_attempt=last)

    @property
    def _over(self) -> bool:
        if self._group.ended:
            return True
        if not self._group.kept or any(rank.busy for rank in self.ranks):
            return False
        return any(rank.code is None for rank in self.ranks)  # else the group ends by itself

    def _answers(self) -> Iterator[RunEvent]:
        """Send the ranks what was answered."""
        for answered in self._questions.step():
            if answered.answer is not None:
                self._group.answer(answered.rank, answered.answer)
            if answered.event is not None:
                yield answered.event

    def _take(self, events: Iterable[RunEvent], screen: Screen) -> None:
        for event in events:
            match event:
                case Doing(text="") if self._stopper.reason:
                    continue  # news of the start: what is worth a word is that it stops
                case Restarted():
                    self._restart(event, screen)
                    continue
                case Note() | GroupEnded():
                    pass
                case _ if self._gives_up:
                    continue  # of ranks that are being ended; what is known of the others stays
                case PulledValues():
                    self._values.take(event)
                case Error() if self._stopper.reason is None:
                    self._watch.remember_waits(self.ranks)
                case Question() if not self._questions.waiting:
                    self._group.send(HoldTimeouts())
            self.take(event)
            screen.take(event)
            self._questions.take(event)

    def _restart(self, event: Restarted, screen: Screen) -> None:
        """Note why the ranks are restarted, and begin anew with them."""
        self._take(self._watch.finish(self.ranks), screen)
        # Without its cell, a missing device or an unknown backend: it would fail again.
        cannot_start = not self.restarts and not self._sender.sent
        if self._stopper.reason or cannot_start or self._watch.mismatch:
            self._gives_up = True
            self._group.kill()
            return
        self._take(self._stacks.of_crashes(self.ranks), screen)
        restart, lines = self._case.restart(self, event, self._stopper, self._watch)
        self.restarts += (restart,)
        self.take(event)
        screen.take(event)
        self._take([Note(text=line) for line in lines], screen)
        self._watch.close()
        self._watch = CollectiveWatch(self.options, self.directory, self._hang_s)
        self._values.begin_attempt()
        self._profiling.begin_attempt()
        self._sender.send_values()

    def _take_results(self, screen: Screen) -> None:
        if not self._values.asked:
            return
        brought = self._values.finish(succeeded=self.error is None)
        self.stayed = tuple(name for name in self.stayed if name not in self._values.paths)
        # A function that comes back names the cell as its file, and there is none.
        self._code.make_known()
        if brought.values is not None:
            self.results = brought.values
        if brought.missing is not None:
            self.state, self.error = State.FAILED, brought.missing
        if brought.note:
            self._take([Note(text=brought.note)], screen)

    def _take_profile(self) -> None:
        """Take what the ranks have measured; a run that failed has a profile too."""
        measured = self._profiling.finish(restarts=len(self.restarts))
        if measured is not None:
            self.profile = measured.profile
            self.closing, self.figure = measured.lines, measured.figure

    def _end(self) -> None:
        self._questions.stop()
        unfinished = self.state in (State.PENDING, State.RUNNING)  # an error of the kernel's own
        if unfinished:
            self.state = State.FAILED
        try:
            if unfinished or self._group.ended or not self._group.kept:
                self._group.close()
        except BaseException:
            self.state = State.FAILED
            raise
        finally:
            self._sender.close()
            self.ended = time.time()

    def _prepare_next_cell(self, screen: Screen) -> None:
        presses = self._stopper.presses
        pressed = presses.count
        for events in prepare_next_cell(
            self._group,
            self.ranks,
            name=self.session,
            succeeded=self.state is State.SUCCEEDED,
            wants_process_group=self.options.init_process_group,
            stopped=lambda: presses.count > pressed,
        ):
            for event in events:  # shown, and not the cell's: it has ended
                if isinstance(event, Doing):
                    self.doing = event.text
                screen.take(event)
            screen.tick(self)

    # --- asked by other threads ---------------------------------------------------------------

    def stop(self) -> None:
        """Stop the ranks, as a press of Stop does; the second time they are killed."""
        self._stopper.press()

    def end_with_kernel(self) -> None:
        """Kill the ranks of a background run, whose kernel has ended."""
        self._stopper.end_with_kernel()

    def stacks(self) -> list[StackDumped]:
        """Return the stacks of the ranks that run."""
        return self._stacks.ask(self.ranks, self._group.dump_stack)

    # --- how it ends --------------------------------------------------------------------------

    def _look_for_stop(self) -> None:
        """Begin to end the ranks, if there is a reason to."""
        reason = self._stopper.look(
            elapsed_s=self._counted_s,
            mismatch=self._watch.differs(self.ranks),
            starting=not self._sender.sent,
        )
        if reason is not None:
            self._questions.stop()
            if reason is not StopReason.PEER_FAILED:  # that the others wait is a consequence
                self._watch.remember_waits(self.ranks)

    @property
    def _counted_s(self) -> float:
        """How much of the time limit is used, in seconds: imports before the start are not."""
        if self._placed_after_s is None:
            return 0.0
        return self.elapsed_s - self._placed_after_s - self._questions.waited_s
