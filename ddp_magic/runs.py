"""Run: one cell on one worker group, from its start to what became of it."""

from __future__ import annotations

import copy
import dataclasses
import enum
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ddp_magic import diagnose, storage
from ddp_magic.capture import Capture
from ddp_magic.cell import Cell
from ddp_magic.diagnose import Failure, Surroundings
from ddp_magic.engines import Engine
from ddp_magic.environment import is_late, rank_environment
from ddp_magic.errors import (
    DDPMagicError,
    LaunchError,
    PullError,
    RunInterrupted,
    TimeLimitError,
    WorkerError,
    WorkerLostError,
    of_class,
)
from ddp_magic.events import (
    Error,
    Event,
    Exit,
    Heartbeat,
    Imported,
    Results,
    RunCell,
    SharedMemory,
    Stayed,
    WorkerExited,
    WorkerReady,
)
from ddp_magic.group import WorkerGroup
from ddp_magic.prelude import OWN_NAMES
from ddp_magic.rank import Rank
from ddp_magic.results import Pull, Pulls
from ddp_magic.stop import FINISH_S, Presses, Stop

POLL_S = 0.05
KEEP_RUNS = 200
PEERS_S = 1.0  # for a session's ranks to end a cell that one of them has failed in
PEERS_FINISH_S = 5.0  # and to clean up, once they are interrupted
RENEW_S = 10.0  # for a session's ranks to make their process group anew


class State(str, enum.Enum):
    """Of a run, in torchx's words."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


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
    """Where a run is shown while it goes on; see `ddp_magic.display`."""

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
        directory: Where the cell and every rank's whole output are.
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
        self.directory: Path = storage.new_run_directory()
        self.id = self.directory.name
        self.cell_path = self.directory / "cell.py"
        self.cell_path.write_text(cell.source, encoding="utf-8")
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
            path=str(self.cell_path),
            execution_count=execution_count,
            prelude=tuple(sorted(self._capture.prelude)),
            argv=options.argv,
            seed=options.seed,
            shell=notebook_shell or {},
            pull=tuple((pull.path, pull.rank) for pull in options.pull),
        )

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
        lines.append(f"  logs: {self.directory}")
        return "\n".join(lines)

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
            rank.log = self.group.directory / f"rank{rank.rank}.log"
        screen.start(self)
        for note in self._capture.notes:
            screen.say(note)
        with Presses() as presses:
            try:
                if self.group.started:
                    self._join(screen)
                else:
                    self.group.start(engine, env, sys_path, self._command.prelude)
                self._send_names()
                self._follow(screen, presses)
                self._take_results(screen)
            finally:
                unfinished = self.state in (State.PENDING, State.RUNNING)
                if unfinished or self.group.ended or not self.group.kept:
                    self.group.close()
                self._capture.close()
                self.ended = time.time()
                if unfinished:  # an error of the kernel's own
                    self.state = State.FAILED
        self._forget()
        screen.finish(self)
        storage.tidy(self.directory)
        storage.prune_now_and_then()

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
        self.group.send(self._command)
        if not self.group.kept:
            self.group.send(Exit())

    def _take_results(self, screen: Screen) -> None:
        """Take what was asked for; from a failed run only if all of it is there."""
        if not self._pulls.asked:
            return
        values = self._pulls.values()
        if self.error is None:
            self.results = values
            if self._pulls.failed:
                self.state = State.FAILED
                self.error = PullError("--pull: " + "; ".join(self._pulls.failed))
        elif not self._pulls.failed:
            self.results = values
            screen.say(f"pulled, although the run did not succeed: {', '.join(values)}")

    def _follow(self, screen: Screen, presses: Presses) -> None:
        stop: Stop | None = None
        while not self._over:
            if self.state is State.PENDING and len(self.group.ready) == len(self.ranks):
                self._send_cell()
            self._take(self.group.poll(POLL_S), screen)
            while self.group.notes:
                screen.say(self.group.notes.pop(0))
            self.note = "stopping" if stop is not None else self.group.waits_for()
            screen.tick(self)
            stop = stop or self._reason_to_stop(screen, presses)
            if stop is not None:
                stop.step(presses.count)
        self._take(self.group.drain(), screen)
        self.state, self.error = self._judge(stop)
        if self.group.kept:
            for rank, member in self.group.members.items():
                self.ranks[rank].log_span = (self.ranks[rank].log_span[0], member.written)
            if self.state is not State.SUCCEEDED:
                self._renew(screen)

    @property
    def _over(self) -> bool:
        if self.group.ended:
            return True
        return self.group.kept and not any(rank.busy for rank in self.ranks)

    def _take(self, events: Iterable[Event], screen: Screen) -> None:
        for event in events:
            if self.options.call and isinstance(event, (Error, Heartbeat)):
                event = dataclasses.replace(event, line=None)  # noqa: PLW2901 -- the same event
            if (rank := getattr(event, "rank", None)) is not None:
                self.ranks[rank].take(event)
            match event:
                case Imported(modules=modules):
                    self.imported = modules
                case Stayed(names=names, values=values):
                    pulled = {pull.path for pull in self.options.pull}
                    self.bound = names
                    self.stayed = tuple(name for name in values if name not in pulled)
                case Results(rank=rank):
                    self._pulls.take(event, self.group.result_fds.pop(rank, None))
                case _:
                    pass
            screen.take(event)

    def _reason_to_stop(self, screen: Screen, presses: Presses) -> Stop | None:
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

    def _renew(self, screen: Screen) -> None:
        """Bring the ranks of a session into step again, or end it."""
        if self.group.ended:
            screen.say(f"{self.name}: the session has ended with its ranks")
            return
        if not self.options.init_process_group:
            return
        problem = self._await_new_group()
        if problem:
            self.group.close()
            screen.say(
                f"{self.name}: the session has ended: its process group could not be made "
                f"anew ({problem})"
            )
            return
        screen.say(
            f"{self.name}: variables are kept; the process group was made anew, since ranks may "
            "have been out of step: DDP objects and groups made before must be made again"
        )

    def _await_new_group(self) -> str:
        """Return what went wrong; empty if all ranks are ready."""
        self.group.renew()
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
                        pass
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

    def _judge(self, stop: Stop | None) -> tuple[State, DDPMagicError | RunInterrupted | None]:
        failures = [f for f in (rank.failure for rank in self.ranks) if f is not None]
        if stop is not None and stop.reason == "peer failed":
            failures = [f for f in failures if f.time < stop.began]
            return State.FAILED, self._failed(failures)
        if stop is not None and stop.reason == "stopped":
            return State.CANCELLED, RunInterrupted(self._how_they_stopped())
        if stop is not None:
            message = f"the run outlasted its time limit of {self.options.time_limit_s:g} s; "
            return State.FAILED, TimeLimitError(message + self._how_they_stopped())
        agent_error = self.group.agent_error
        if failures and any(rank.pid is not None for rank in self.ranks):
            return State.FAILED, self._failed(failures)
        missing = [rank.rank for rank in self.ranks if rank.busy]
        if agent_error or missing:
            return State.FAILED, self._not_launched(agent_error)
        return State.SUCCEEDED, None

    def _not_launched(self, agent_error: str) -> DDPMagicError:
        words = (agent_error or self.group.last_words()).splitlines()
        started = any(rank.pid is not None for rank in self.ranks)
        what = (
            "the agent died while the ranks were running (killed, or out of memory); "
            "the ranks died with it"
            if started
            else "the ranks could not be started"
        )
        log = self.directory / "agent.log"
        return LaunchError(f"{what}; the agent's own words are in {log}", details=words[-20:])

    def _failed(self, failures: list[Failure]) -> DDPMagicError:
        first = diagnose.first_failure(failures)
        others = [
            f"rank {rank.rank}: {self._fate(rank, first)}"
            for rank in self.ranks
            if rank.rank != first.rank
        ]
        message = diagnose.describe(first)
        if first.error is None:
            code = first.finished.code if first.finished else first.code or 0
            line = self.ranks[first.rank].line
            if line is not None:
                message += f"; it was last seen at line {line}"
            return WorkerLostError(message, rank=first.rank, code=code, details=others)
        head = f"rank {first.rank} of {len(self.ranks)} raised:"
        hints = diagnose.name_hints(
            first.error, self._source, self._around, OWN_NAMES & set(self._command.prelude)
        )
        lines = [head, *first.error.traceback, *others, *hints]
        return of_class(WorkerError, first.error.classes, self._around.notebook)(
            message,
            rank=first.rank,
            ename=first.error.ename,
            evalue=first.error.evalue,
            traceback=first.error.traceback,
            details=lines,
        )

    def _fate(self, rank: Rank, first: Failure) -> str:
        """Say in a few words what became of a rank that was not the first to fail."""
        failure = rank.failure
        if failure is not None and failure.error is None:
            self._read_stack(rank)
        where = rank.where
        if failure is None:
            return "finished" if rank.code == 0 else f"had not started{where}"
        if rank.answered and failure.error is not None and failure.time > first.time:
            return f"was interrupted{where}"
        if failure.lost_its_peer:
            return f"lost its connection to rank {first.rank}{where} ({failure.error.ename})"  # type: ignore[union-attr]
        if failure.error is not None:
            same = first.error is not None and failure.error.evalue == first.error.evalue
            text = "raised the same" if same else f"raised {failure.error.ename}"
            return text + where + ("" if same else f": {failure.error.evalue}")
        if failure.finished is None and failure.code in (-signal.SIGTERM, -signal.SIGKILL):
            return f"was stopped{where}"
        return diagnose.describe(failure).partition(" ")[2].partition(" ")[2]

    def _read_stack(self, rank: Rank) -> None:
        rank.read_stack(self.directory, self.cell_path, self.label)

    def _how_they_stopped(self) -> str:
        words = []
        for rank in self.ranks:
            where = rank.where
            if rank.killed and not rank.answered:
                words.append(f"rank {rank.rank} did not answer{where} and was killed")
            elif rank.killed:
                words.append(f"rank {rank.rank} was killed{where} while it cleaned up")
            elif rank.error is not None:
                words.append(f"rank {rank.rank} stopped{where}")
            elif rank.finished is not None:
                words.append(f"rank {rank.rank} finished")
            else:
                words.append(f"rank {rank.rank} was ended before the cell")
        return "; ".join(words)


def group_of(options: Options, directory: Path) -> WorkerGroup:
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
