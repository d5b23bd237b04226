"""One rank: a process that runs cells and reports to its kernel what happens.

The main thread runs the cells in a small IPython shell (`Worker.serve`). Two daemon threads run
beside it: one receives commands (`listener`), one sends heartbeats and acknowledges interrupts
(`heartbeat`). The only other threads are timers of interrupts. The order of a rank's life::

    main           take what a fork must have anew (`fresh_state`)
    Worker         connect, register stacks, send WorkerHello with the text pipe, start the threads
    Worker.serve   device, process group, shell -> WorkerReady; then cell after cell
    Worker.exit    threads, exit handlers, destructors (`exit`)
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from datetime import timedelta
from pathlib import Path
from time import time as now  # bound here: a cell may replace the module's
from typing import NoReturn

import torch

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.system.tracebacks import warnings_without_ours
from ddp_magic.wire.channel import connect
from ddp_magic.wire.commands import CALLED, Exit, NewGroup, RunCell
from ddp_magic.wire.events import NOT_STARTED
from ddp_magic.wire.specs import WorkerSettings, default_backend
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import WorkerHello
from ddp_magic.worker import child_main, error_report, fresh_state, interrupts
from ddp_magic.worker.called_function import file_of
from ddp_magic.worker.console import debugger, keyboard, post_mortem
from ddp_magic.worker.console.displays import Displays
from ddp_magic.worker.console.keyboard import Keyboard
from ddp_magic.worker.console.streams import TextPipe, flush, move_high
from ddp_magic.worker.device import cuda_error, set_device
from ddp_magic.worker.exit import end_forked, end_process
from ddp_magic.worker.inheritance import Inheritance, MainSpec
from ddp_magic.worker.interrupts import user_code
from ddp_magic.worker.listener import CommandListener, MainCommand
from ddp_magic.worker.process_group import ProcessGroups
from ddp_magic.worker.reports import Reports
from ddp_magic.worker.shell import CellShell, start_shell
from ddp_magic.worker.user_modules import UserModules, imported_since
from ddp_magic.worker.values.cell_names import NamesBefore
from ddp_magic.worker.values.notebook_values import NotebookValues
from ddp_magic.worker.watch import checked_calls, stacks
from ddp_magic.worker.watch.activity import Activity
from ddp_magic.worker.watch.heartbeat import HeartbeatThread
from ddp_magic.worker.watch.profiler import profiled


def main(settings: WorkerSettings) -> NoReturn:
    """Be a rank, until its last cell has run."""
    try:
        fresh_state.take()
        worker = Worker(settings)
    except Exception as error:  # noqa: BLE001 -- the kernel shows this line of the agent's log
        reason = error_report.last_line(error)
        os.write(2, f"{NOT_STARTED} {os.environ['RANK']}: {reason}\n".encode())
        os._exit(1)
    with warnings_without_ours():
        try:
            code = worker.serve()
        except Exception as error:  # noqa: BLE001 -- a cell may have broken anything; it is reported
            code = worker.give_up(error)
        worker.exit(code)


class Worker:
    """The main thread of a rank."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Connect, hand over the text pipe, and start the other threads."""
        self._rank = int(os.environ["RANK"])
        self._has_peers = os.environ["WORLD_SIZE"] != "1"
        self._settings = settings
        self._newest_module = next(reversed(sys.modules))
        self._modules = UserModules(self._newest_module)
        self._activity = Activity()
        self._groups: ProcessGroups | None = None
        self._directory = RunDirectory(Path(settings.directory))
        self._for_children = Inheritance(self._directory.children(self._rank))
        self._values = NotebookValues(self._for_children)
        self._channel = connect(settings.socket)
        self._channel.move(move_high)
        self._reports = Reports(self._rank, self._channel)
        self._heartbeats = HeartbeatThread(self._rank, self._channel, self._activity)
        self._pipe = TextPipe()
        self._displays = Displays(self._rank, self._channel, self._pipe)
        self._keyboard = Keyboard(self._rank, self._channel, self._displays.send_marked)
        keyboard.connect(self._keyboard)
        debugger.install()
        self._listener = CommandListener(
            self._channel,
            self._activity,
            self._values,
            abort_collectives=self._abort_collectives,
            hold_timeouts=self._hold_timeouts,
            take_answer=self._keyboard.take,
        )
        # Before the hello, since from then on the kernel may ask for stacks.
        stacks.register(self._directory.stacks(self._rank))
        self._send_hello()
        # After it, so that a failure to reach the kernel is in the agent's log.
        self._pipe.open_standard_streams()
        interrupts.install(self._heartbeats.interrupt_taken)
        interrupts.watch_destructors(
            self._heartbeats.report_interrupted,
            is_exiting=lambda: self._activity.phase is Phase.EXITING,
        )
        self._start_threads()

    def _send_hello(self) -> None:
        hello = WorkerHello(
            rank=self._rank,
            pid=os.getpid(),
            marker=self._pipe.marker,
            attempt=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
            node=self._settings.node,
        )
        if not self._channel.send(hello, fd=self._pipe.read_end):
            raise ConnectionError("the kernel has closed its connection")
        self._pipe.close_read_end()

    def _start_threads(self) -> None:
        threads = {"ddp_magic_listen": self._listener.run, "ddp_magic_beat": self._heartbeats.run}
        for name, run in threads.items():
            threading.Thread(target=run, name=name, daemon=True).start()

    def _abort_collectives(self) -> None:
        if self._groups is not None:
            self._groups.cut()

    def _hold_timeouts(self) -> None:
        if self._groups is not None:
            self._groups.hold_timeouts()

    def serve(self) -> int:
        """Set the rank up, then run cells until told to exit.

        Returns:
            The exit code: that of the last cell.
        """
        started, error = user_code(self._start, heed_missed=True)
        if started is None:
            self._reports.error(error or KeyboardInterrupt())
            return 1
        shell, groups, command = started
        code = 0
        while True:
            match command:
                case RunCell():
                    code = self._run_cell(shell, command)
                    if self._settings.kept:
                        self._report_idle()
                case NewGroup(number=number):
                    self._renew(groups, number)
                case Exit():
                    return code
            command = self._listener.next_command()

    # --- start --------------------------------------------------------------------------------

    def _start(self) -> tuple[CellShell, ProcessGroups, MainCommand]:
        """Create what a cell finds ready, and wait for the first command."""
        self._device = device = set_device(self._settings.device, self._settings.backend)
        self._for_children.device = str(device)
        self._groups = groups = self._process_groups()
        groups.init()
        names = {
            "rank": self._rank,
            "local_rank": int(os.environ["LOCAL_RANK"]),
            "world_size": int(os.environ["WORLD_SIZE"]),
            "device": device,
        }
        shell = start_shell(self._displays, names)
        shell.user_module.__spec__ = MainSpec(self._for_children)
        self._reports.ready(str(device))
        return shell, groups, self._listener.next_command()

    def _process_groups(self) -> ProcessGroups:
        settings = self._settings
        backend = settings.backend or default_backend(self._device.type)
        return ProcessGroups(
            self._directory,
            backend=backend if settings.init_process_group else None,
            timeout=None if settings.timeout_s is None else timedelta(seconds=settings.timeout_s),
        )

    def _renew(self, groups: ProcessGroups, number: int) -> None:
        try:
            groups.renew(number)
        except Exception as error:  # noqa: BLE001 -- torch's and the network's; the kernel shows it
            self._reports.error(error)
            return
        self._reports.ready(str(self._device))

    # --- one cell -----------------------------------------------------------------------------

    def _begin_cell(self, shell: CellShell, command: RunCell) -> None:
        """Give the cell what a script finds: an earlier one of the session may have changed it."""
        self._reports.begin_cell(command)
        self._activity.start_cell(command.name)
        self._pipe.open_standard_streams()
        keyboard.begin_cell(can_ask=command.can_ask)
        debugger.begin_cell(command.name, shell.compile.labels, is_call=command.call)
        if command.may_ask:
            self._hold_timeouts()
        interrupts.install(self._heartbeats.interrupt_taken)
        sys.argv[:] = [command.name, *command.argv]
        self._for_children.add_cell(command.path, command.prelude, command.name)
        fresh_state.seed(command.seed)

    def _run_cell(self, shell: CellShell, command: RunCell) -> int:
        self._begin_cell(shell, command)
        self._activity.phase = Phase.RUNNING
        self._heartbeats.resume()
        before = NamesBefore({})

        def run() -> BaseException | None:
            nonlocal before
            child_main.provide_prelude(shell.user_ns, command.prelude)
            self._reload_modules()
            self._values.provide(shell)
            labels = self._activity.other_cells = shell.compile.numbered_labels()
            if command.call:
                labels = {**file_of(shell.user_ns.get(CALLED)), **labels}
                self._activity.cell_labels = labels
                self._reports.tell_functions(labels)
            before = NamesBefore(shell.user_ns)
            with checked_calls.written(command, self._rank, labels):
                return shell.run_file(command)

        directory = RunDirectory(Path(command.path).parent)
        file = directory.profile(self._rank) if command.profile else None
        with profiled(file, self._rank, self._device.type, self._settings.node):
            error, interrupted = user_code(run, heed_missed=True)
        if self._channel.closed:  # a process that the cell has forked (`os.fork`) has left it too
            end_forked(error or interrupted, self._rank, self._reports.place, shell.format_error)
        raised = self._end_debugger(command, error)
        self._activity.phase = Phase.EXITING
        flush()
        collectives = [self._heartbeats.collectives_of_cell(error)] if self._has_peers else []
        code = self._reports.end(collectives, error or interrupted, shell.format_error, raised)
        if self._settings.kept:
            self._modules.record()
        if self._rank == 0:
            imported = imported_since(self._newest_module)
            self._reports.imports(imported)
            own = imported.values()
            self._channel.send(before.compare(0, shell.user_ns, shell.user_ns_hidden, own))
        self._reports.results(command, shell.user_ns)
        return code

    def _end_debugger(self, command: RunCell, error: BaseException | None) -> float:
        """Let the debugger see an error of the cell (`--debug`), and end it.

        Returns:
            When the cell ended, in seconds since the epoch.
        """
        debugger.end_cell()
        ended = now()
        if command.debug and error is not None:
            post_mortem.hold(error, self._rank, ended, self._keyboard, self._reports.place)
        if self._groups is not None:
            self._groups.release_timeouts()
        return ended

    def _reload_modules(self) -> None:
        for line in self._modules.reload_edited():
            if self._rank == 0:
                print(line)  # noqa: T201 -- part of the cell's output

    def _report_idle(self) -> None:
        self._activity.phase = Phase.IDLE
        self._keyboard.idle = True
        has_group = torch.distributed.is_initialized() or not self._settings.init_process_group
        self._reports.idle(has_group=has_group, cuda_error=cuda_error())

    def give_up(self, error: Exception) -> int:
        """Report what has ended `serve`: a cell that broke what ddp_magic itself needs.

        Returns:
            The exit code.
        """
        try:
            self._reports.error(error)
        except Exception:  # noqa: BLE001 -- for the same reason, most often
            reason = error_report.last_line(error)
            message = f"rank {self._rank} cannot continue after its cell: {reason}\n"
            with contextlib.suppress(OSError):
                os.write(2, message.encode())
        return 1

    def exit(self, code: int) -> NoReturn:
        """End the process."""
        self._activity.phase = Phase.EXITING
        end_process(code, self._heartbeats.report_interrupted)
