"""Run: one cell on one worker group, from its start to what became of it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ddp_magic.display.diagnose import Surroundings
from ddp_magic.display.rank import Rank
from ddp_magic.display.verdict import Evidence, State, judge
from ddp_magic.engines import Engine
from ddp_magic.errors import DDPMagicError, PullError, RunInterrupted
from ddp_magic.kernel.capture import Capture
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.group import WorkerGroup
from ddp_magic.kernel.pull import Pull, Pulls
from ddp_magic.kernel.stop import FINISH_S, InterruptCounter, Stop
from ddp_magic.prelude import OWN_NAMES
from ddp_magic.system import storage
from ddp_magic.system.environment import is_late, rank_environment
from ddp_magic.system.frames import know_source
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.messages import (
    CellNames,
    Error,
    Event,
    Exit,
    Heartbeat,
    Imported,
    Results,
    RunCell,
    SharedMemory,
    WorkerExited,
    WorkerReady,
)

POLL_S = 0.05
KEEP_RUNS = 200
PEERS_S = 1.0  # for a session's ranks to end a cell that one of them has failed in
PEERS_FINISH_S = 5.0  # and to clean up, once they are interrupted
# For a session's ranks to make their process group anew; on a GPU, what has been asked of it before
# is done first: a thousand products of large matrices took 20 s.
RENEW_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is asked for; see `%%ddp --help` for each.

    Attributes:
        visible: Value for the ranks' CUDA_VISIBLE_DEVICES; None to leave it alone.
        devices: One line that says which devices the ranks run on.
        show: Ranks whose output is shown; None for all.
        pull: What the notebook wants afterwards.
        session: Name of the session whose ranks run the cell; empty for ranks of its own.
        call: The cell is ours and calls a function: its lines are of no interest.
    """

    nproc: int
    device: str = "cpu"
    visible: str | None = None
    devices: str = ""
    backend: str | None = None
    timeout_s: float | None = None
    time_limit_s: float | None = None
    init_process_group: bool = True
    show: frozenset[int] | None = None
    seed: int | None = None
    argv: tuple[str, ...] = ()
    pull: tuple[Pull, ...] = ()
    session: str = ""
    call: bool = False


class Screen(Protocol):
    """Where a run is shown while it goes on; see `ddp_magic.display.screen`."""

    def start(self, run: Run) -> None:
        """The run is about to start."""

    def take(self, event: Event) -> None:
        """Show an event."""

    def say(self, text: str) -> None:
        """Show a line of ddp_magic's own."""

    def tick(self, run: Run) -> None:
        """Show what has changed; called at least every `POLL_S`."""

    def finish(self, run: Run) -> None:
        """The run is over."""


class Run:
    """One cell on one worker group.

    Attributes:
        id: Name of the run and of its directory.
        directory: Where the cell is, and every rank's whole output unless it is a session's.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or CANCELLED.
        ranks: What is known of each rank.
        error: What ended the run, if it did not succeed.
        note: What it waits for, in a few words.
        imported: Installed libraries that the cell has imported.
        captured: What the cell took along from the notebook: name, type, size.
        results: What was brought back, by the notebook's name for it; of `launch`, the function's
            values, one a rank.
        stayed: Names that the cell has given values, which ended with the ranks.
        bound: All names that it has bound on rank 0.
    """

    def __init__(
        self,
        cell: Cell,
        options: Options,
        *,
        execution_count: int | None = None,
        capture: Capture | None = None,
        around: Surroundings | None = None,
        notebook_shell: dict[str, str] | None = None,
        group: WorkerGroup | None = None,
    ) -> None:
        """Make the run's directory and write the cell into it; `execute` runs it.

        Args:
            cell: What to run.
            options: How.
            execution_count: The number in the notebook's `In[n]`.
            capture: What it takes along from the notebook, and of the prelude.
            around: Where its names could have come from, for hints in errors.
            notebook_shell: What the notebook's shell is set to; see `events.RunCell`.
            group: A session's ranks; None for ranks of its own.
        """
        source = cell.source.encode()
        self.directory = storage.new_run_directory(len(source))
        self.id = self.directory.id
        cell_path = self.directory.cell
        cell_path.write_bytes(source)
        self._source = cell.source
        self._environment = cell.environment
        self._around = around or Surroundings()
        self._capture = capture or Capture()
        self.captured = tuple(self._capture.values)
        self.results: Any = {}
        self.stayed: tuple[str, ...] = ()
        self.bound: tuple[str, ...] = ()
        self._pulls = Pulls(options.pull, options.nproc, self.directory)
        self.label = f"Cell In[{execution_count}]" if execution_count else "Cell"
        self.options = options
        self.state = State.PENDING
        self.ranks = [Rank(rank=r) for r in range(options.nproc)]
        self.error: DDPMagicError | RunInterrupted | None = None
        self.started = time.time()
        self.ended: float | None = None
        self.note = ""
        self.imported: tuple[str, ...] = ()
        self.group = group or group_of(options, self.directory)
        self._command = RunCell(
            path=str(cell_path),
            file=(file := cell_file(cell_path, execution_count, self.group.cell_files)),
            execution_count=execution_count,
            prelude=tuple(sorted(self._capture.prelude)),
            argv=options.argv,
            seed=options.seed,
            shell=notebook_shell or {},
            pull=tuple((pull.path, pull.rank) for pull in options.pull),
            call=options.call,
        )
        self.group.cell_files.add(file)

    def __repr__(self) -> str:
        ranks = f"{len(self.ranks)} rank{'s' if len(self.ranks) > 1 else ''}"
        lines = [f"Run {self.id}: {self.state.value} · {ranks} · {self.elapsed_s:.1f} s"]
        if self.error is not None:
            lines.append(f"  error: {type(self.error).__name__}: {self.error}")
        if self.results:
            names = self.results if isinstance(self.results, dict) else ["one a rank"]
            lines.append(f"  results: {', '.join(names)}")
        if self.captured:
            lines.append(f"  captured: {', '.join(map(str, self.captured))}")
        lines.append(f"  logs: {self.logs}")
        return "\n".join(lines)

    @property
    def logs(self) -> Path:
        """Directory of the ranks' and the agent's logs; a session's cells share one."""
        return self.group.directory.path

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start to the end, or to now."""
        return (self.ended or time.time()) - self.started

    def execute(self, screen: Screen, engine: Engine, sys_path: list[str]) -> None:
        """Run the cell to its end. What went wrong is then in `error`; nothing is raised.

        Args:
            screen: Where it is shown.
            engine: What places the agent.
            sys_path: The ranks' module search path.
        """
        # What the cell sets for libraries that are imported before it runs.
        early = {n: v for n, v in self._environment.items() if not is_late(n)}
        env = rank_environment(os.environ | early, self.options.visible, self.options.nproc)
        self.started = time.time()
        for rank in self.ranks:
            rank.log = self.group.directory.rank_log(rank.rank)
        screen.start(self)
        for note in (*storage.take_notes(), *self._capture.notes):
            screen.say(note)
        with InterruptCounter() as presses:
            try:
                if self.group.started:
                    self._join(screen)
                else:
                    self.group.start(engine, env, sys_path, self._command.prelude)
                self._send_names()
                self._follow(screen, presses)
                self._take_results(screen)
            finally:
                self._end()
            self._forget()
            screen.finish(self)
            self.directory.tidy()
            storage.prune_in_background()
            if presses.count and not isinstance(self.error, KeyboardInterrupt):
                # The cells after this one are not to run; the ranks' own error is shown.
                shown = self.error._render_traceback_()[:-1] if self.error else ()
                self.error = RunInterrupted(interrupted_words(self), details=shown)

    def _end(self) -> None:
        unfinished = self.state in (State.PENDING, State.RUNNING)  # an error of the kernel's own
        if unfinished:
            self.state = State.FAILED
        try:
            if unfinished or self.group.ended or not self.group.kept:
                self.group.close()
        except BaseException:
            self.state = State.FAILED
            raise
        finally:
            self._capture.close()
            self.ended = time.time()

    def _forget(self) -> None:
        """Let go of the notebook's values: the run is kept for a long time, for its status."""
        self._around = Surroundings()
        self._capture = Capture()
        self._pulls = Pulls((), 0, self.directory)

    def _join(self, screen: Screen) -> None:
        """Begin with ranks that are there already."""
        self.group.look()
        for event in self.group.unseen:  # what they wrote since their last cell
            screen.take(event)
        self.group.unseen = []
        for rank, member in self.group.members.items():
            self.ranks[rank].pid = member.process.pid if member.process else None
            self.ranks[rank].log_span = (member.written, None)
        for event in self.group.ready.values():
            self.ranks[event.rank].take(event)

    def _send_names(self) -> None:
        for number, segment in self._capture.segments.items():
            if number not in self.group.sent:
                self.group.send(SharedMemory(number=number, sizes=segment.sizes), segment.fd)
                self.group.sent.add(number)
        if self._capture.command is not None:
            self.group.send(self._capture.command)

    def _send_cell(self) -> None:
        """Let the ranks begin, once all are ready.

        Not before: a rank that has finished its cell closes its connections, and one that is still
        connecting to others takes that for its peer's death.
        """
        self.state = State.RUNNING
        path = Path(self._command.path)
        if not path.exists():  # a cleaner of temporary files came during a long start
            self.directory.make_again()
            path.write_text(self._source, encoding="utf-8")
        self.group.send(self._command)
        if not self.group.kept:
            self.group.send(Exit())

    def _take_results(self, screen: Screen) -> None:
        """Take what was asked for; from a failed run only if all of it is there."""
        if not self._pulls.asked:
            return
        values = self._pulls.values()
        # A function that comes back names the cell as its file, and there is none.
        know_source(self._command.name, self._source)
        if self.error is None:
            self.results = values
            if self._pulls.failed:
                self.state = State.FAILED
                self.error = PullError("--pull: " + "; ".join(self._pulls.failed))
        elif not self._pulls.failed:
            self.results = values
            screen.say(f"pulled, although the run did not succeed: {', '.join(values)}")

    def _follow(self, screen: Screen, presses: InterruptCounter) -> None:
        stop: Stop | None = None
        while not self._over:
            if self.state is State.PENDING and stop is None and self._all_ready:
                self._send_cell()
            self._take(self.group.poll(POLL_S), screen)
            self._say_notes(screen)
            self.note = "stopping" if stop is not None else self.group.waits_for()
            screen.tick(self)
            stop = stop or self._reason_to_stop(screen, presses)
            if stop is not None:
                stop.step(presses.count)
        self._take(self.group.drain(), screen)
        self._say_notes(screen)
        self.state, self.error = judge(self._evidence(stop))
        if self.group.kept:
            for rank, member in self.group.members.items():
                self.ranks[rank].log_span = (self.ranks[rank].log_span[0], member.written)
            self._keep(screen, presses)

    @property
    def _all_ready(self) -> bool:
        return len(self.group.ready) == len(self.ranks)

    def _say_notes(self, screen: Screen) -> None:
        while self.group.notes:
            screen.say(self.group.notes.pop(0))

    @property
    def _over(self) -> bool:
        if self.group.ended:
            return True
        if not self.group.kept or any(rank.busy for rank in self.ranks):
            return False
        return any(rank.code is None for rank in self.ranks)  # else the group ends by itself

    def _take(self, events: Iterable[Event], screen: Screen) -> None:
        for event in events:
            if self.options.call and isinstance(event, (Error, Heartbeat)):
                event = dataclasses.replace(event, line=None)  # noqa: PLW2901 -- the same event
            if (rank := getattr(event, "rank", None)) is not None:
                self.ranks[rank].take(event)
            match event:
                case Imported(modules=modules):
                    self.imported = modules
                case CellNames(names=names, values=values):
                    pulled = {pull.path for pull in self.options.pull}
                    self.bound = names
                    self.stayed = tuple(name for name in values if name not in pulled)
                case Results(rank=rank):
                    self._pulls.take(event, self.group.result_fds.pop(rank, None))
                case _:
                    pass
            screen.take(event)

    def _reason_to_stop(self, screen: Screen, presses: InterruptCounter) -> Stop | None:
        limit_s = self.options.time_limit_s
        if presses.count:
            return self._stop(screen, "stopped", FINISH_S)
        if limit_s is not None and self.elapsed_s > limit_s:
            return self._stop(screen, "time limit", 0.0)
        if self.group.kept:
            failures = [rank.failure.time for rank in self.ranks if rank.failure is not None]
            # Its peers may wait for it for ever; those that have only to finish get their time.
            if failures and time.time() - min(failures) > PEERS_S:
                return self._stop(screen, "peer failed", PEERS_FINISH_S)
        return None

    def _keep(self, screen: Screen, presses: InterruptCounter) -> None:
        """Prepare the ranks of a session for its next cell, or end it."""
        if self.group.ended or any(rank.code is not None for rank in self.ranks):
            self.group.close()  # without one of its ranks it could run no other cell
            screen.say(f"{self.name}: the session has ended with its ranks")
            return
        failed = self.state is not State.SUCCEEDED
        if not self.options.init_process_group or not (failed or not self.group.has_process_group):
            return
        problem = self._await_new_group(screen, presses)
        if problem:
            self.group.close()
            screen.say(
                f"{self.name}: the session has ended: its process group could not be made "
                f"anew ({problem})"
            )
            return
        why = (
            "since ranks may have been out of step" if failed else "since the cell had destroyed it"
        )
        screen.say(
            f"{self.name}: variables are kept; the process group was made anew, {why}: DDP objects "
            "and groups made before must be made again"
        )

    def _await_new_group(self, screen: Screen, presses: InterruptCounter) -> str:
        """Return what went wrong; empty if all ranks are ready."""
        self.group.renew()
        self.note, pressed = "making the process group anew", presses.count
        deadline = time.monotonic() + RENEW_S
        ready: set[int] = set()
        while len(ready) < len(self.ranks):
            for event in self.group.poll(POLL_S):
                match event:
                    case WorkerReady(rank=rank):
                        ready.add(rank)
                    case Error(rank=rank, ename=ename, evalue=evalue):
                        return f"rank {rank} raised {ename}: {evalue}"
                    case WorkerExited(rank=rank):
                        return f"rank {rank} ended"
                    case _:
                        screen.take(event)
            screen.tick(self)
            if presses.count > pressed:
                return "Stop was pressed"
            if time.monotonic() > deadline:
                return "not all ranks answered"
        return ""

    @property
    def name(self) -> str:
        """What a session is called; empty for a run of its own ranks."""
        return self.options.session

    def _stop(self, screen: Screen, reason: str, finish_s: float) -> Stop:
        return Stop(
            self.group,
            self.ranks,
            say=screen.say,
            read_stack=self._read_stack,
            reason=reason,
            finish_s=finish_s,
            keep=self.group.kept,
        )

    def _evidence(self, stop: Stop | None) -> Evidence:
        for rank in self.ranks:
            if rank.code and rank.error is None and rank.finished is None:
                self._read_stack(rank)
        return Evidence(
            ranks=self.ranks,
            stop=stop.reason if stop else "",
            stopped=stop.began if stop else 0.0,
            time_limit_s=self.options.time_limit_s,
            agent_error=self.group.agent_error,
            agent_died=self.group.agent_died,
            agent_words=self.group.last_words(),
            logs=self.group.directory,
            source=self._source,
            around=self._around,
            prelude=OWN_NAMES & set(self._command.prelude),
        )

    def _read_stack(self, rank: Rank) -> None:
        rank.read_stack(self.group.directory, self._command.name, self.label)


def interrupted_words(run: Run | None) -> str:
    """Say what Stop has ended, outside of a run's own time."""
    if run is None or run.state is State.PENDING:
        return "Stop was pressed before the ranks were started"
    if isinstance(run.error, KeyboardInterrupt):
        return str(run.error)
    if run.error is not None:
        return f"Stop was pressed when the run had failed: {run.error}"
    return "Stop was pressed when the run had ended"


def cell_file(cell_path: Path, number: int | None, taken: Collection[str]) -> str:
    """Return what a cell calls itself: a file of the notebook's directory, as a script would be.

    No such file is made there. Who wants the cell's text finds it in `linecache`.

    Args:
        cell_path: Where the cell lies, in the run's directory.
        number: In the notebook's `In[n]`.
        taken: What the session's other cells call themselves.
    """
    stem = f"cell_{number}" if number else cell_path.parent.name
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it has been removed
        here = cell_path.parent
    names = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2)))
    files = (str(here / f"{name}.py") for name in names)
    return next(file for file in files if file not in taken and not os.path.lexists(file))


def group_of(options: Options, directory: RunDirectory) -> WorkerGroup:
    """Describe the ranks that a run, or the first one of a session, is to have."""
    return WorkerGroup(
        directory,
        nproc=options.nproc,
        device=options.device,
        backend=options.backend,
        timeout_s=options.timeout_s,
        init_process_group=options.init_process_group,
        kept=bool(options.session),
    )


class Runs:
    """The runs of this kernel, newest first."""

    def __init__(self) -> None:
        """Begin with none."""
        self._runs: deque[Run] = deque(maxlen=KEEP_RUNS)

    def add(self, run: Run) -> None:
        """Take up a new run."""
        self._runs.appendleft(run)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs))

    def without_results(self, run: Run) -> None:
        """Keep a run for its status only: its results are whoever asked for them."""
        kept = copy.copy(run)
        kept.results = {}
        self._runs[self._runs.index(run)] = kept

    def last_binding(self, name: str) -> Run | None:
        """Return the newest run that has given this name a value."""
        return next((run for run in self._runs if name in run.bound), None)

    def find(self, run_id: str) -> Run | None:
        """Return the run of that id (or the end of it), the newest one first."""
        return next((run for run in self._runs if run.id.endswith(run_id)), None)
