"""The background runs of a notebook, and which of all runs a user means."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from ddp_magic.display.diagnosis.first_failure import headline
from ddp_magic.display.diagnosis.name_hints import Surroundings
from ddp_magic.display.journal.past_run import PastRun
from ddp_magic.display.record import Background
from ddp_magic.engines.local import LocalEngine
from ddp_magic.kernel.background.run import BackgroundRun
from ddp_magic.kernel.background.start_host import HostStart, start_host
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.past_runs import PastRuns
from ddp_magic.kernel.values.capture import Capture
from ddp_magic.system.storage import process_storage
from ddp_magic.system.tracebacks import cell_label


class BackgroundRuns:
    """The background runs that this process has started or attached to, newest first.

    Args:
        past: Finds those of other processes.
    """

    def __init__(self, past: PastRuns) -> None:
        self._runs: list[BackgroundRun] = []
        self._past = past
        self._refusal = ""  # why the newest cell with --bg has started no run

    def start(
        self,
        cell: Cell,
        options: Options,
        capture: Capture,
        around: Surroundings,
        *,
        args: SimpleNamespace,
        hang_s: float,
        forkserver: LocalEngine,
    ) -> BackgroundRun:
        """Start a run that a host serves; for the other arguments see `Run`.

        Args:
            cell: What to run.
            options: How.
            capture: What it takes along; the host has its memory too from now on.
            around: Where its names could have come from.
            args: The options as they were given.
            hang_s: A shorter wait of ranks for others is not explained, in seconds.
            forkserver: The notebook's.

        Raises:
            OSError: The host cannot be started.
        """
        directory = process_storage.new_run_directory(len(cell.source.encode()))
        background = Background(
            detached=args.detach,
            kernel=os.getpid(),
            pull=",".join(map(str, options.pull)),
            call=options.call,
            out=args.out or "",
            raises=not args.no_raise_error,
        )
        capture.notes[:0] = process_storage.take_notes()
        start = HostStart.of(
            cell,
            options,
            capture,
            around,
            directory=directory,
            background=background,
            cold=args.cold,
            hang_s=hang_s,
        )
        run = BackgroundRun(
            directory,
            background,
            process=start_host(start, forkserver),
            label=cell_label(cell.number),
            devices=options.devices,
            captured=tuple(capture.values),
        )
        self.add(run)
        return run

    def add(self, run: BackgroundRun) -> None:
        """Add a run."""
        self._runs.insert(0, run)
        self._refusal = ""

    @contextmanager
    def noting_refusal(self, line: str) -> Iterator[None]:
        """Remember that a cell starts no run: what follows without an id is not to mean another.

        Args:
            line: The line of `%%ddp`.
        """
        try:
            yield
        except Exception as error:
            if not {"--bg", "--detach"}.isdisjoint(line.split()):
                self._refusal = (
                    headline(getattr(error, "msg", "") or str(error)) or type(error).__name__
                )
            raise

    def busy(self) -> list[str]:
        """Return a line for each of those that go on, newest first."""
        return [run.title for run in self.going_on()]

    def ended(self) -> list[str]:
        """Return a line for each of those that have ended, newest first."""
        return [run.title for run in self if run.is_over()]

    def __iter__(self) -> Iterator[BackgroundRun]:
        return iter(list(self._runs))

    def going_on(self) -> list[BackgroundRun]:
        """Return those that have not ended."""
        return [run for run in self if not run.is_over()]

    def going_on_anywhere(self) -> list[BackgroundRun]:
        """Return those of all notebooks that have not ended, this one's first."""
        known = [run.id for run in self]
        others = [run for run in self._past.of_living_hosts() if run.id not in known]
        return [*self.going_on(), *map(BackgroundRun.of, others)]

    def find(self, run_id: str) -> BackgroundRun | None:
        """Return the newest one here whose id ends so; None if there is none."""
        return next((run for run in self if run.id.endswith(run_id)), None)

    def find_any(self, run_id: str) -> BackgroundRun | None:
        """Return the newest one of any notebook whose id ends so; None if there is none."""
        try:
            return self.find(run_id) or self._attached(self._past.find(run_id))
        except ValueError:  # there is none, or it is no background run
            return None

    def choose(self, run_id: str | None, *, of_any: bool) -> BackgroundRun:
        """Return the run that a user means.

        Args:
            run_id: The end of its id; None for the only one that goes on, or else the newest.
            of_any: Without an id: of any notebook, not only of this one.

        Raises:
            ValueError: There is none, or there are several.
        """
        if run_id is not None:
            return self.find(run_id) or self._attached(self._past.find(run_id))
        if self._refusal:
            raise ValueError(
                f"the last background cell started no run ({self._refusal}): run it again, or give "
                "the id of an earlier run"
            )
        if of_any:
            self._past.wait_for_hosts()
        going_on = self.going_on_anywhere() if of_any else self.going_on()
        if len(going_on) > 1:
            titles = "".join(f"\n  {run.title}" for run in going_on)
            raise ValueError(f"several background runs are going on: give the id of one{titles}")
        if going_on:
            return self._known(going_on[0])
        # One whose results nobody has taken yet comes first.
        own = sorted(self, key=lambda run: run.collected)
        if own and not (of_any and own[0].collected):
            return own[0]
        if of_any and (past := next(self._past.of_hosts(), None)) is not None:
            return self.find(past.id) or self._attached(past)
        whose = "" if of_any else " of this notebook: %ddp_attach follows those of others"
        raise ValueError(f"there is no background run{whose}")

    def _known(self, run: BackgroundRun) -> BackgroundRun:
        if run not in self._runs:
            self.add(run)
        return run

    def _attached(self, run: PastRun) -> BackgroundRun:
        if run.background is None:
            raise ValueError(
                f"run {run.id} is not a background run: %ddp_show {run.id} shows it again"
            )
        attached = BackgroundRun.of(run)
        self.add(attached)
        return attached

    def close(self) -> list[str]:
        """End those that end with this process; return messages for the user."""
        runs = self.going_on()
        for run in runs:
            run.end_with_kernel()
        for run in runs:
            run.close()
        ended = [run for run in runs if run.is_ours and not run.background.detached]
        return [f"run {run.id} ended, which was in the background" for run in ended]
