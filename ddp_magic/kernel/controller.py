"""State of the notebook's process that outlives a cell: runs, sessions, forkserver, names."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Collection, Mapping
from types import SimpleNamespace

from ddp_magic.display.diagnosis.diagnose import Surroundings
from ddp_magic.display.diagnosis.hangs import HANG_S
from ddp_magic.display.question_box import Box
from ddp_magic.display.record import Background, Screen
from ddp_magic.display.status import Status
from ddp_magic.engines.local import LocalEngine
from ddp_magic.engines.torchrun import Torchrun
from ddp_magic.errors import LaunchError
from ddp_magic.kernel.answers import Answers
from ddp_magic.kernel.background.hosting import HostStart, start_host
from ddp_magic.kernel.background.run import BackgroundRun
from ddp_magic.kernel.background.runs import BackgroundRuns
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.control import ControlServer
from ddp_magic.kernel.options.declaration import OPTIONS, OptionError
from ddp_magic.kernel.past_runs import PastRuns
from ddp_magic.kernel.resolve import check_ranks, shown_ranks, trace_file
from ddp_magic.kernel.run import Run
from ddp_magic.kernel.run_options import Options
from ddp_magic.kernel.runs import Runs
from ddp_magic.kernel.session import Session, Sessions
from ddp_magic.kernel.values.capture import Notebook
from ddp_magic.kernel.values.value_stream import Extra
from ddp_magic.system.frames import cell_label
from ddp_magic.system.gpu_locks import GpuLocks
from ddp_magic.system.storage import process_storage
from ddp_magic.wire.forkserver_status import ForkserverStatus

current: Controller | None = None  # of this process

# IPython's own names in a notebook: results and inputs.
_RESULTS = re.compile(r"_{1,3}|_\d+|_oh|Out|_i{1,3}|_i\d+|_ih|In")


class Controller:
    """Runs cells, and keeps what later cells need.

    Args:
        notebook: The notebook's names.
        serves_one: Whether this is a host, which serves one run.
    """

    def __init__(self, notebook: Notebook, *, serves_one: bool = False) -> None:
        self._serves_one = serves_one
        self.runs = Runs()
        self.sessions = Sessions()
        self.notebook = notebook
        self.forkserver = LocalEngine(fallback=Torchrun())
        self.hang_s = HANG_S
        self.past = PastRuns(self._own_ids, roots=() if serves_one else None)
        self.background = BackgroundRuns(self.past)
        self.answers = Answers(self.runs, self.sessions, self.describe_forkserver, self.past)
        self._control = ControlServer(self.answers.answer, is_host=serves_one)

    def _own_ids(self) -> list[str]:
        return [run.id for run in (*self.runs, *self.background)]

    def describe_forkserver(self) -> ForkserverStatus:
        """Return what the forkserver does."""
        return self.forkserver.describe()

    def preload(self, wanted: bool | list[str]) -> None:
        """Start the forkserver in the background, or end it.

        Args:
            wanted: Whether to have one; or names of libraries to import beside those that the
                notebook uses.
        """
        if sys.platform == "win32":
            return
        if self.forkserver.used:
            self.forkserver.close()
            self.forkserver = LocalEngine(fallback=Torchrun())
        if wanted is False:
            self.forkserver.close()
            return
        if isinstance(wanted, list):
            self.forkserver.want(wanted)
        self.forkserver.follow(sys.modules)

    def follow(self) -> None:
        """Follow the imports and names of the notebook, after each of its cells."""
        self.forkserver.follow(sys.modules)
        self.notebook.forget_unbound()

    def join(self, args: SimpleNamespace) -> Options | None:
        """Return the options of a session's later cell; None if the session does not exist yet.

        Args:
            args: The values of the options.

        Raises:
            OptionError: One contradicts the options that the session was started with.
        """
        session = None if args.session is None else self.sessions.get(args.session)
        if session is None:
            return None
        nproc = session.options.nproc
        other = f"omit the option, run %ddp_stop {session.name} first, or use another session name"
        if "nproc_per_node" in args.given and args.nproc_per_node != nproc:
            ranks = f"{nproc} rank{'s' if nproc > 1 else ''}"
            problem = f"session {session.name!r} already runs with {ranks}: {other}"
            raise OptionError("nproc_per_node", problem)
        for option in OPTIONS:
            if option.fixed and option.name in args.given and getattr(args, option.name):
                problem = f"session {session.name!r} is already running: {other}"
                raise OptionError(option.name, problem)
        check_ranks(args, nproc)
        return dataclasses.replace(
            session.options,
            devices=f"session {session.name} · {session.options.devices}",
            time_limit_s=args.time_limit,
            show=shown_ranks(args, nproc),
            quiet=args.quiet,
            seed=args.seed,
            argv=args.argv,
            pull=args.pull,
            check=args.check,
            debug=args.debug,
            profile=args.profile,
            trace=trace_file(args),
            gpu_locks=GpuLocks(),  # the session's stay with its group
        )

    def make(
        self,
        cell: Cell,
        options: Options,
        only: Collection[str] | None,
        *,
        execution_count: int | None = None,
        settings: dict[str, str] | None = None,
        extra: Mapping[str, Extra] | None = None,
    ) -> Run:
        """Create a cell's run, in a session's ranks or in its own.

        Args:
            cell: What to run.
            options: How.
            only: Names of the notebook that may be sent to the ranks; None for all.
            execution_count: The number in the notebook's `In[n]`.
            settings: Settings of the notebook's shell.
            extra: Further names to send.

        Raises:
            CaptureError: A value that the cell needs cannot be sent to the ranks.
            LaunchError: torch is not installed.
        """
        session = self.sessions.get(options.session) if options.session else None
        if session is None:
            _check_torch()
            session = Session.of(options) if options.session else None
        held = session.held if session else None
        capture = self.notebook.capture(
            cell.names, only, held, extra, option=options.spelled("capture")
        )
        if session is None:
            capture.notes += self._results_left(cell)
        if session is not None:
            self.sessions.add(session)
            if why := self.sessions.lost.pop(session.name, ""):
                capture.notes.insert(
                    0,
                    f"session {session.name} had ended since its last cell: {why}; these are new "
                    "ranks, without its variables",
                )
        run = Run(
            cell,
            options,
            execution_count=execution_count,
            capture=capture,
            around=Surroundings(self.notebook.visible(), self._elsewhere),
            notebook_shell=settings,
            group=session.group if session else None,
            cell_files=session.cell_files if session else None,
            hang_s=self.hang_s,
        )
        self.add(run)
        return run

    def add(self, run: Run) -> None:
        """Add a run that is about to start."""
        self.runs.add(run)
        self._control.start(run.directory.path.parent)

    def start_in_background(
        self,
        cell: Cell,
        options: Options,
        args: SimpleNamespace,
        *,
        execution_count: int | None = None,
        settings: dict[str, str] | None = None,
        extra: Mapping[str, Extra] | None = None,
    ) -> BackgroundRun:
        """Start a run that a host serves.

        Args:
            cell: What to run.
            options: How.
            args: The options as they were given.
            execution_count: The number in the notebook's `In[n]`.
            settings: Settings of the notebook's shell.
            extra: Further names to send.

        Raises:
            CaptureError: A value that the cell needs cannot be sent to the ranks.
            LaunchError: torch is not installed.
            OSError: The host cannot be started.
        """
        _check_torch()
        capture = self.notebook.capture(
            cell.names, args.capture, None, extra, option=options.spelled("capture")
        )
        try:
            directory = process_storage.new_run_directory(len(cell.source.encode()))
            background = Background(
                detached=args.detach,
                kernel=os.getpid(),
                pull=",".join(map(str, options.pull)),
                call=options.call,
                out=args.out or "",
                raises=not args.no_raise_error,
            )
            start = HostStart(
                directory=directory.path,
                cell=cell,
                options=options,
                background=background,
                cold=args.cold,
                execution_count=execution_count,
                settings=settings or {},
                sys_path=list(sys.path),
                hang_s=self.hang_s,
                notebook=frozenset(self.notebook.visible()),
                elsewhere={
                    name: found for name in cell.names.reads if any(found := self._elsewhere(name))
                },
                values=capture.values,
                captured=capture.command,
                segments={n: (s.fd, s.sizes) for n, s in capture.segments.items()},
                prelude=capture.prelude,
                notes=[*process_storage.take_notes(), *capture.notes, *self._results_left(cell)],
            )
            process = start_host(start)
        finally:
            capture.close()
        run = BackgroundRun(
            directory,
            background,
            process=process,
            label=cell_label(execution_count),
            devices=options.devices,
            captured=tuple(capture.values),
        )
        self.background.add(run)
        self._control.start(directory.path.parent)
        return run

    def _results_left(self, cell: Cell) -> list[str]:
        """Return a note if the cell reads IPython's own names (`_`, `Out`), which are not sent."""
        read = cell.names.reads - cell.names.assigns  # not the `_` of `for _ in range(3)`
        names = sorted(name for name in read if _RESULTS.fullmatch(name))
        names = [n for n in names if n in self.notebook.names and not self.notebook.defines(n)]
        if not names:
            return []
        return [
            f"`{names[0]}` in the cell is the rank's own: the notebook's results are not sent to "
            "the ranks; give the value a name in the notebook, and use that"
        ]

    def _elsewhere(self, name: str) -> tuple[str, str]:
        run = self.runs.last_binding(name)
        if run is None:
            return "", ""
        session = self.sessions.get(run.options.session)
        return run.label, session.name if session and name in session.held.bound else ""

    def execute(
        self, run: Run, screen: Screen, *, cold: bool = False, box: Box | None = None
    ) -> None:
        """Run a cell to its end.

        Args:
            run: A run from `make`.
            screen: Where it is shown.
            cold: Whether to start the ranks by torchrun.
            box: Where a person answers what the ranks ask; None for nowhere.
        """
        run.execute(screen, Torchrun() if cold else self.forkserver, list(sys.path), box)
        self.runs.without_results(run)
        self.forkserver.want(run.imported)
        if session := self.sessions.get(run.options.session):
            session.held.bound.update(run.bound)
        else:
            self.sessions.forget(run.options.session)

    # --- background runs ----------------------------------------------------------------------

    def status(self, run_id: str | None = None) -> Status:
        """Return the status of everything, or of one run.

        Raises:
            ValueError: There is no such run.
        """
        if run_id is None:
            shown = [
                r for r in self.background.going_on_anywhere() if r.is_ours or r.background.detached
            ]
            return self.answers.status([run.status() for run in shown])
        if (run := self.runs.find(run_id)) is not None:
            return Status([run])
        if (found := self.background.find_any(run_id)) is None:
            raise ValueError(f"unknown run {run_id!r}: %ddp_status without it lists the runs")
        return Status([], background=[found.status()])

    def stoppable(self) -> list[str]:
        """Return what `%ddp_stop` can end: names of sessions, ids of background runs."""
        return [
            *(session.name for session in self.sessions),
            *(run.id for run in self.background.going_on_anywhere()),
        ]

    def stop(self, name: str | None) -> str:
        """End a session or a run; return a message for the user.

        Args:
            name: Name of a session, or the end of a run's id; None for the only background run.

        Raises:
            ValueError: There is none, or there are several.
        """
        sessions = [session.name for session in self.sessions]
        going_on = self.background.going_on()
        own = [*sessions, *(run.id for run in going_on)]
        others = [each for each in self.stoppable() if each not in own]
        running = [f"running: {', '.join(own)}"] if own else []
        running += [f"of other notebooks: {', '.join(others)}"] if others else []
        there = "; ".join(running) or "nothing is running"
        if name is None:
            if len(going_on) == 1 and not sessions:
                return going_on[0].stop()
            if not running:
                raise ValueError("there is no session and no background run")
            which = "give its name or id" + (", or --all" if own else "")
            raise ValueError(f"missing session or run: {which} ({there})")
        if name not in sessions and not self.runs.find(name):
            self.past.wait_for_start(name)
            if (run := self.background.find_any(name)) is not None:
                return run.stop()
        try:
            return self.answers.answer(["stop", name])
        except LaunchError as error:
            raise ValueError(str(error)) from error
        except ValueError as error:
            raise ValueError(f"{error} ({there})") from error

    def stop_all(self) -> list[str]:
        """End all sessions and background runs of this notebook; return messages for the user."""
        return [*self.sessions.end_all(), *(run.stop() for run in self.background.going_on())]

    def close(self) -> None:
        """End the sessions, the background runs of this process and the forkserver."""
        self._control.close()
        self.background.close()
        self.sessions.close()
        self.forkserver.close(at_once=self._serves_one)


def _check_torch() -> None:
    """Check that ranks could import torch.

    Raises:
        LaunchError: They could not.
    """
    if "torch" not in sys.modules and importlib.util.find_spec("torch") is None:
        raise LaunchError(
            f"torch is not installed in the notebook's environment ({sys.prefix}): "
            "run `%pip install torch` in a cell, then this one again"
        )
