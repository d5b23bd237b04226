"""One cell on one worker group: what it is made of, and what became of it."""

from __future__ import annotations

import time
from typing import Any

from ddp_magic.display.diagnosis.hangs import HANG_S
from ddp_magic.display.diagnosis.name_hints import Surroundings
from ddp_magic.display.question_box import Box
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import Background, RunRecord, Screen, error_lines, value_lines
from ddp_magic.engines import Engine
from ddp_magic.errors import RunInterrupted
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.case import Case
from ddp_magic.kernel.execution.cell_sender import CellSender
from ddp_magic.kernel.execution.event_loop import EventLoop, Parts
from ddp_magic.kernel.execution.run_code import CodeFiles, RunCode
from ddp_magic.kernel.execution.run_options import Options, group_of
from ddp_magic.kernel.execution.run_values import RunValues
from ddp_magic.kernel.execution.stop import Stopper
from ddp_magic.kernel.interrupts import interrupted_words
from ddp_magic.kernel.machine.limits import system_error
from ddp_magic.kernel.values.capture import Capture
from ddp_magic.kernel.watch.profiling import Profiling
from ddp_magic.kernel.watch.stacks import Stacks
from ddp_magic.kernel.worker_group.group import WorkerGroup
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.system.storage import process_storage
from ddp_magic.wire.kernel_events import (
    Note,
    RunEvent,
    StackDumped,
)
from ddp_magic.wire.states import State


class Run(RunRecord):
    """One cell on one worker group.

    Args:
        cell: What to run.
        options: How.
        capture: What it takes along from the notebook, and of the prelude.
        around: Where its names could have come from, for hints in errors.
        group: A session's ranks; None for ranks of its own.
        code_files: The code that the session's ranks have; that of this run is added.
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
        code_files: CodeFiles | None = None,
        hang_s: float = HANG_S,
        directory: RunDirectory | None = None,
        background: Background | None = None,
    ) -> None:
        capture = capture or Capture()
        size = len(cell.source.encode())
        self.directory = directory or process_storage.new_run_directory(size)
        self._group = group or group_of(options, self.directory)
        logs = self._group.directory
        files = CodeFiles() if code_files is None else code_files
        files.add_functions(capture.command.sources if capture.command else {})
        self._code = RunCode(cell, self.directory.cell, files, is_call=options.call)
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
            fewest=options.min_nodes * options.nproc_per_node,
        )
        self.options = options
        self.results: Any = {}
        self.captured = tuple(capture.values)
        self._notes = tuple(capture.notes)
        sender = CellSender(
            self._group, cell, options, capture, self.directory, file=self._code.file
        )
        stacks = Stacks(logs, self._code.cell)
        stopper = Stopper(
            self._group,
            self.ranks,
            stack_of=stacks.of,
            time_limit_s=options.time_limit_s,
            kept=self._group.kept,
            again=f"%ddp_stop {self.id} again" if background else "press Stop again",
        )
        self._parts = Parts(
            options=options,
            directory=self.directory,
            group=self._group,
            sender=sender,
            stopper=stopper,
            values=RunValues(options, self.directory, kept=background is not None),
            profiling=Profiling(options, self.directory, self._code),
            stacks=stacks,
            case=Case(
                cell.source,
                around or Surroundings(),
                prelude=sender.prelude,
                time_limit_s=options.time_limit_s,
            ),
            hang_s=hang_s,
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
        self.started = time.time()
        self.progress = screen.progress
        loop = EventLoop(self, self._parts, screen, box)
        screen.start(self)
        loop.take(Note(text=text) for text in (*process_storage.take_notes(), *self._notes))
        with self._parts.stopper.presses as counter:
            try:
                loop.follow(engine, sys_path)
                loop.take(self._take_results())
            except OSError as error:
                self.error = system_error(error)
                self.state = State.RUNNING  # its ranks may be, and are ended
            finally:
                loop.close()
                self._end()
            self._take_profile()
            self._parts.forget()
            screen.finish(self)
            self.directory.tidy()
            process_storage.prune_in_background()
            if counter.count and not isinstance(self.error, KeyboardInterrupt):
                # The cells after this one are not to run; the ranks' own error is shown.
                shown = self.error._render_traceback_()[:-1] if self.error else ()
                self.error = RunInterrupted(interrupted_words(self), details=shown)

    def _take_results(self) -> list[RunEvent]:
        """Take what was brought back; return what is to be said of it."""
        values = self._parts.values
        if not values.asked:
            return []
        brought = values.finish(succeeded=self.error is None)
        self.stayed = tuple(name for name in self.stayed if name not in values.paths)
        # A function that comes back names the cell as its file, and there is none.
        self._code.make_known()
        if brought.values is not None:
            self.results = brought.values
        if brought.missing is not None:
            self.state, self.error = State.FAILED, brought.missing
        return [Note(text=brought.note)] if brought.note else []

    def _take_profile(self) -> None:
        """Take what the ranks have measured; a run that failed has a profile too."""
        restarts = len(self.restarts)
        measured = self._parts.profiling.finish(nproc=len(self.ranks), restarts=restarts)
        if measured is not None:
            self.profile = measured.profile
            self.closing, self.figure = measured.lines, measured.figure

    def _end(self) -> None:
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
            self._parts.sender.close()
            self.ended = time.time()

    # --- asked by other threads ---------------------------------------------------------------

    def stop(self) -> None:
        """Stop the ranks, as a press of Stop does; the second time they are killed."""
        self._parts.stopper.press()

    def end_with_kernel(self) -> None:
        """Kill the ranks of a background run, whose kernel has ended."""
        self._parts.stopper.end_with_kernel()

    def stacks(self) -> list[StackDumped]:
        """Return the stacks of the ranks that run."""
        return self._parts.stacks.ask(self.ranks, self._group.dump_stack)
