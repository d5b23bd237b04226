"""State of the notebook's process that outlives a cell: runs, sessions, forkserver, names.

Runs get the notebook's `sys.path` from here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Collection, Mapping
from types import SimpleNamespace

from ddp_magic.display.diagnosis.hangs import HANG_S
from ddp_magic.display.diagnosis.name_hints import Surroundings
from ddp_magic.display.question_box import Box
from ddp_magic.display.record import Screen
from ddp_magic.engines import Engine
from ddp_magic.engines.local import LocalEngine
from ddp_magic.engines.torchrun import Torchrun
from ddp_magic.errors import LaunchError
from ddp_magic.kernel.background.run import BackgroundRun
from ddp_magic.kernel.background.runs import BackgroundRuns
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.control.answers import Answers
from ddp_magic.kernel.control.asked import Asked
from ddp_magic.kernel.control.server import ControlServer
from ddp_magic.kernel.execution.run import Run
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.past_runs import PastRuns
from ddp_magic.kernel.resolve import join
from ddp_magic.kernel.runs import Runs
from ddp_magic.kernel.session import Session, Sessions
from ddp_magic.kernel.values.capture import Capture, Notebook
from ddp_magic.kernel.values.needed_values import Held
from ddp_magic.kernel.values.value_stream import Extra
from ddp_magic.system import libraries
from ddp_magic.wire.forkserver_status import ForkserverStatus

current: Controller | None = None  # of this process


class Controller:
    """Runs cells, and keeps what later cells need.

    Args:
        notebook: The notebook's names.
        serves_one: Whether this is a host, which serves one run.
    """

    def __init__(self, notebook: Notebook, *, serves_one: bool = False) -> None:
        self._serves_one = serves_one
        self._pid = os.getpid()
        self.runs = Runs()
        self.sessions = Sessions()
        self.notebook = notebook
        self.forkserver = LocalEngine(fallback=Torchrun())
        self.hang_s = HANG_S
        self.past = PastRuns(self._own_ids, roots=() if serves_one else None)
        self.background = BackgroundRuns(self.past)
        answers = Answers(
            *(self.runs, self.sessions, self._forkserver_status, self.past),
            *(self.background.busy, self.background.ended),
        )
        self.asked = Asked(answers, self.runs, self.sessions, self.background, self.past)
        self._control = ControlServer(answers.answer, is_host=serves_one)

    def _own_ids(self) -> list[str]:
        return [run.id for run in (*self.runs, *self.background)]

    def _forkserver_status(self) -> ForkserverStatus:
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
        return None if session is None else join(args, session.options)

    def make(
        self,
        cell: Cell,
        options: Options,
        only: Collection[str] | None,
        extra: Mapping[str, Extra] | None = None,
    ) -> Run:
        """Create a cell's run, in a session's ranks or in its own.

        Args:
            cell: What to run.
            options: How.
            only: Names of the notebook that may be sent to the ranks; None for all.
            extra: Further names to send.

        Raises:
            CaptureError: A value that the cell needs cannot be sent to the ranks.
            LaunchError: torch is not installed, or this is a forked child of the notebook.
        """
        session = self.sessions.get(options.session) if options.session else None
        if session is None:
            _check_torch()
            session = Session.of(options) if options.session else None
        capture = self._capture(cell, options, only, session.held if session else None, extra)
        if session is not None:
            self.sessions.add(session)
            capture.notes[:0] = self.sessions.take_loss(session.name)
        run = Run(
            cell,
            options,
            capture=capture,
            around=self.surroundings(),
            group=session.group if session else None,
            code_files=session.code_files if session else None,
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
        extra: Mapping[str, Extra] | None = None,
    ) -> BackgroundRun:
        """Start a run that a host serves.

        Args:
            cell: What to run.
            options: How.
            args: The options as they were given.
            extra: Further names to send.

        Raises:
            CaptureError: A value that the cell needs cannot be sent to the ranks.
            LaunchError: torch is not installed, or this is a forked child of the notebook.
            OSError: The host cannot be started.
        """
        _check_torch()
        capture = self._capture(cell, options, args.capture, None, extra)
        try:
            run = self.background.start(
                cell,
                options,
                capture,
                self.surroundings(),
                args=args,
                hang_s=self.hang_s,
                forkserver=self.forkserver,
            )
        finally:
            capture.close()
        self._control.start(run.directory.path.parent)
        return run

    def _capture(
        self,
        cell: Cell,
        options: Options,
        only: Collection[str] | None,
        held: Held | None,
        extra: Mapping[str, Extra] | None,
    ) -> Capture:
        if os.getpid() != self._pid:
            raise LaunchError(
                "this process was forked from the notebook's, and cannot start ranks: run the cell "
                "in the notebook, or start the process with the method 'spawn'"
            )
        capture = self.notebook.capture(
            cell.names, only, held, extra, option=options.spelled("capture")
        )
        if held is None:  # ranks of a session have results of their own
            capture.notes += self.notebook.results_left(cell.names)
            if not libraries.current_directory():
                capture.notes.append(
                    "the notebook's working directory was removed: the ranks use another one; "
                    "%cd DIRECTORY chooses one that exists"
                )
        return capture

    def surroundings(self) -> Surroundings:
        """Return where the names of a cell could have come from, for hints in its errors."""
        return Surroundings(self.notebook.visible(), self._elsewhere)

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
        run.execute(screen, self._engine(run.options, cold=cold), list(sys.path), box)
        self.runs.without_results(run)
        self.forkserver.want(run.imported)
        if session := self.sessions.get(run.options.session):
            session.held.bound.update(run.bound)
        else:
            self.sessions.forget(run.options.session)

    def _engine(self, options: Options, *, cold: bool) -> Engine:
        if cold or options.engine == "torchrun":
            return Torchrun()
        if options.engine == "local":
            return self.forkserver
        from ddp_magic.engines.remote import Remote

        return Remote(options.engine, options.engine_args)

    def close(self) -> list[str]:
        """End the sessions, the background runs of this process and the forkserver.

        Returns:
            Messages for the user: what ended.
        """
        self._control.close()
        ended = [*self.background.close(), *self.sessions.close()]
        self.forkserver.close(at_once=self._serves_one)
        return ended


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
