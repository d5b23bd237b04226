"""What a rank reports of its cells: their ends, what they imported, the values that are pulled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import time as now  # bound here: a cell may replace the module's
from types import ModuleType
from typing import Any

from ddp_magic.system import libraries
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.commands import RunCell
from ddp_magic.wire.worker_events import Collectives, Finished, Idle, Imported, Results, WorkerReady
from ddp_magic.worker import error_report
from ddp_magic.worker.error_report import CellPlace, Formatter
from ddp_magic.worker.interrupts import user_code
from ddp_magic.worker.values import sent_values


class Reports:
    """Sends the kernel the reports of one rank.

    Args:
        rank: This rank.
        channel: To the kernel.

    Attributes:
        place: The cell that runs, as its errors name it.
    """

    def __init__(self, rank: int, channel: Channel) -> None:
        self.place = CellPlace()
        self._rank = rank
        self._channel = channel

    def begin_cell(self, command: RunCell) -> None:
        """Name the places of errors from now on by this cell."""
        self.place = CellPlace.of(command)

    def tell_functions(self, labels: Mapping[str, str]) -> None:
        """Name the places in the notebook's functions: nobody has seen the cell that calls them."""
        self.place = replace(self.place, functions=labels)

    def ready(self, device: str) -> None:
        """Report that the rank can run a cell."""
        self._channel.send(WorkerReady(rank=self._rank, time=now(), device=device))

    def end(
        self,
        collectives: Sequence[Collectives],
        error: BaseException | None,
        format_error: Formatter | None,
        raised: float,
    ) -> int:
        """Report how the cell ended; return its exit code.

        Args:
            collectives: What is known of its collectives, to be sent with the report.
            error: What it raised, if anything.
            format_error: IPython's formatter.
            raised: When it ended, in seconds since the epoch.
        """
        if error is None:
            self._channel.send_together([*collectives, Finished(rank=self._rank, time=now())])
            return 0
        self._channel.send_together(collectives)  # to format an error may take long
        if isinstance(error, SystemExit):
            finished = error_report.describe_exit(error, self._rank)
            self._channel.send(finished)
            return finished.code
        self.error(error, format_error, raised)
        return 1

    def error(
        self,
        error: BaseException,
        format_error: Formatter | None = None,
        raised: float | None = None,
    ) -> None:
        """Report an error; for the arguments see `error_report.send_error`."""
        send = self._channel.send
        error_report.send_error(error, self._rank, self.place, send, format_error, raised)

    def imports(self, imported: Mapping[str, ModuleType]) -> None:
        """Report which libraries the next run will probably need: those that were imported here."""
        if modules := libraries.libraries(imported):
            self._channel.send(Imported(rank=self._rank, modules=tuple(modules)))

    def results(self, command: RunCell, namespace: dict[str, Any]) -> None:
        """Send the values that the notebook pulls from this rank."""
        paths = [path for path, rank in command.pull if rank in (None, self._rank)]
        if not paths:
            return
        directory = RunDirectory(Path(command.path).parent)
        sent, error = user_code(lambda: sent_values.send(self._rank, paths, namespace, directory))
        if sent is None:  # a value's own code was interrupted
            failed = dict.fromkeys(paths, f"could not be sent ({type(error).__name__})")
            sent = Results(rank=self._rank, failed=failed), None
        event, segment = sent
        self._channel.send(event, fd=None if segment is None else segment.fd)
        if segment is not None:
            segment.close()

    def idle(self, *, has_group: bool, cuda_error: str) -> None:
        """Report that the rank waits for the next cell of its session.

        Args:
            has_group: Whether it has its default process group, if it is to have one.
            cuda_error: Why it cannot use its GPU any more; empty if it can.
        """
        idle = Idle(rank=self._rank, time=now(), group=has_group, cuda_error=cuda_error)
        self._channel.send(idle)
