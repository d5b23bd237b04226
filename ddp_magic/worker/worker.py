"""One rank: a process that runs cells and tells its kernel what happens.

The main thread runs the cell in a small IPython shell. Two daemon threads stand beside it: one
listens for commands, one sends heartbeats and acknowledges interrupts. Descriptors 1 and 2 are a
pipe whose read end the kernel holds, so that the last words before a SIGKILL arrive too.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import dataclasses
import faulthandler
import fcntl
import functools
import io
import itertools
import os
import queue
import random
import resource
import secrets
import select
import shutil
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import monotonic  # bound here: a cell may replace the module's
from time import time as now
from types import TracebackType
from typing import Any, NoReturn

import psutil
import threadpoolctl
import torch

from ddp_magic.system import libraries, processes
from ddp_magic.system.environment import threads_wanted
from ddp_magic.system.frames import is_ours, without_ours
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import connect
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.messages import (
    LOST_CONNECTION,
    NOT_STARTED,
    Captured,
    CellNames,
    ClearOutput,
    DisplayData,
    Error,
    Exit,
    Finished,
    Heartbeat,
    Idle,
    Imported,
    Interrupt,
    Interrupted,
    NewGroup,
    Results,
    RunCell,
    SharedMemory,
    WorkerHello,
    WorkerReady,
)
from ddp_magic.wire.specs import WorkerSettings
from ddp_magic.wire.states import Phase
from ddp_magic.worker import child_main, interrupts, received_values, sent_values
from ddp_magic.worker.interrupts import user_code
from ddp_magic.worker.process_group import ProcessGroups
from ddp_magic.worker.shell import CellShell, end_names, start_shell
from ddp_magic.worker.user_modules import UserModules

HEARTBEAT_S = 0.25
FAILED_EXIT_S = 1.0  # for the exit handlers of a rank that failed: its peers wait for its end
QUEUES_S = 0.3  # for the threads of multiprocessing's queues to give back their semaphores
PIPE_BYTES = 2**20
ERROR_CHARS = 100_000  # longest piece of an error's text
ABORT_AFTER_S = 0.3  # for Python code to take an interrupt by itself
AGAIN_S = 0.05  # until an interrupt that a destructor has swallowed comes again
SAVE_S = 1.0  # for exit handlers, before an interrupt that came shortly before reaches them
HIGH_FD = 900  # under the usual limit of 1024 open files
UNREADABLE = "<its text cannot be shown>"
_MISSING = object()
_DEFINITIONS = (type, types.FunctionType, types.ModuleType, types.BuiltinFunctionType)


class Worker:
    """The rank's end of the connection, and what the main thread is doing."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Connect, hand over the text pipe, and start the two threads."""
        self.rank = int(os.environ["RANK"])
        self.local_rank = int(os.environ["LOCAL_RANK"])
        self.world_size = int(os.environ["WORLD_SIZE"])
        self._settings = settings
        self._newest_module = next(reversed(sys.modules))
        self._modules = UserModules(self._newest_module)
        self._phase = Phase.STARTING
        self._cell_path = self._label = ""
        self._call = False
        self._cells = 0
        self._mark = 0
        self._mark_lock = threading.Lock()
        self._marker = f"\x1b]ddp_magic;{secrets.token_hex(8)};"
        self._commands: queue.SimpleQueue[RunCell | NewGroup | Exit] = queue.SimpleQueue()
        self._groups: ProcessGroups | None = None
        self._segments: dict[int, Segment] = {}
        self._captured: Captured | None = None
        self._for_children = child_main.Inheritance(
            RunDirectory(Path(settings.directory)).children(self.rank)
        )
        self._wake_r, self._wake_w = map(_out_of_the_way, os.pipe())
        os.set_blocking(self._wake_w, False)
        self._channel = connect(settings.socket)
        self._channel.move(_out_of_the_way)
        self._redirect_descriptors()
        self._install_interrupts()
        sys.unraisablehook = functools.partial(self._unraisable, sys.unraisablehook)
        for target in (self._listen, self._beat):
            threading.Thread(target=target, name=f"ddp_magic{target.__name__}", daemon=True).start()

    def _redirect_descriptors(self) -> None:
        """Hand the read end of our text to the kernel, then write to it.

        In this order, so that a failure to reach the kernel is told in the agent's log.
        """
        # Before the hello, since from then on the kernel may ask.
        self._register_stacks()
        read_end, self._pipe = map(_out_of_the_way, os.pipe())
        _grow_pipe(self._pipe)
        hello = WorkerHello(rank=self.rank, pid=os.getpid(), marker=self._marker)
        if not self._channel.send(hello, fd=read_end):
            raise ConnectionError("the kernel has closed its connection")
        os.close(read_end)
        self._open_standard_streams()

    def _install_interrupts(self) -> None:
        interrupts.install(lambda: self._wake(b"i"))

    def _register_stacks(self) -> None:
        """Let the rank write where it is, when it is asked or crashes, for the kernel to show.

        In C: it answers also while C code holds the interpreter lock.
        """
        path = RunDirectory(Path(self._settings.directory)).stacks(self.rank)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            fd = _out_of_the_way(os.open(path, flags, 0o600))
        except OSError:  # a full disk costs the stacks, not the rank
            fd = _out_of_the_way(os.open(os.devnull, os.O_WRONLY))
        self._stacks = open(fd, "wb", buffering=0)  # noqa: SIM115, PTH123 -- as long as the process
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        faulthandler.enable(file=self._stacks, all_threads=True)

    def _open_standard_streams(self) -> None:
        """Let descriptors 1 and 2 be our pipe, and Python's streams write to them.

        Before each cell: an earlier one of the session may have closed or replaced them.
        """
        os.dup2(self._pipe, 1)
        os.dup2(self._pipe, 2)
        nothing = os.open(os.devnull, os.O_RDONLY)
        if nothing != 0:
            os.dup2(nothing, 0)
            os.close(nothing)
        sys.stdout = sys.__stdout__ = _text_stream(1)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _text_stream(2)  # type: ignore[misc]

    # --- threads ------------------------------------------------------------------------------

    def _listen(self) -> None:
        while True:
            commands = self._channel.receive()
            if commands is None:  # the kernel is gone, and so are we
                os.killpg(os.getpgrp(), signal.SIGKILL)
            for command in commands or []:
                match command:
                    case Interrupt(abort_collectives=abort):
                        self._interrupt(abort_collectives=abort)
                    case SharedMemory(number=number, sizes=sizes):
                        fd = self._channel.received_fds.pop(0)
                        self._segments[number] = Segment(fd, sizes)
                    case Captured():  # for the cell that comes next
                        self._captured = command
                    case RunCell() | NewGroup() | Exit():
                        if self._phase is Phase.IDLE:
                            interrupts.forget_missed()
                        self._commands.put(command)
                        self._wake(b"c")

    def _beat(self) -> None:
        while True:
            idle = self._phase is Phase.IDLE  # nobody listens then, and nothing happens
            ready = select.select([self._wake_r], [], [], None if idle else HEARTBEAT_S)[0]
            if not self._channel.intact():
                # Nobody hears what happens here, and nobody could end it.
                os._exit(LOST_CONNECTION)
            if ready and b"i" in os.read(self._wake_r, 64):
                self._tell_interrupted()
            self._channel.send(
                Heartbeat(
                    rank=self.rank,
                    time=now(),
                    phase=self._phase,
                    line=self._current_line(),
                    rss_mib=_rss_mib(),
                    device_mib=_device_mib(),
                )
            )

    def _current_line(self) -> int | None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        while frame is not None:
            if frame.f_code.co_filename == self._cell_path:
                return frame.f_lineno
            frame = frame.f_back
        return None

    def _wake(self, why: bytes) -> None:
        try:
            os.write(self._wake_w, why)
        except BlockingIOError:
            pass  # 64 KB unread: this one is not needed

    def _interrupt(self, *, abort_collectives: bool) -> None:
        interrupts.send()
        if abort_collectives:
            timer = threading.Timer(ABORT_AFTER_S, self._abort_collectives, (self._cells,))
            timer.daemon = True
            timer.start()

    def _abort_collectives(self, cell: int) -> None:
        """Let the cell go on to its KeyboardInterrupt, if it waits in a collective."""
        if self._phase is Phase.RUNNING and self._cells == cell and self._groups is not None:
            self._groups.cut()

    # --- what the shell calls -----------------------------------------------------------------

    def display(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None,
        display_id: str | None,
        *,
        update: bool,
    ) -> None:
        """Send a rich output, and mark its place in the text."""
        self._send_marked(
            lambda mark: DisplayData(
                rank=self.rank,
                mark=mark,
                data=data,
                metadata=metadata or {},
                display_id=display_id,
                update=update,
            )
        )

    def clear_output(self) -> None:
        """Let this rank's next output take the place of its last."""
        self._send_marked(lambda mark: ClearOutput(rank=self.rank, mark=mark))

    def _send_marked(self, event: Any) -> None:  # noqa: ANN401 -- a function of the mark
        _flush()
        # Whole: after half a frame nothing that follows could be read.
        with interrupts.held_back(), self._mark_lock:
            self._mark += 1
            # The event first: when the kernel reads the mark, the event is there already.
            if self._channel.send(event(self._mark)):
                os.write(self._pipe, f"{self._marker}{self._mark}\a".encode())

    @property
    def connected(self) -> bool:
        """False in a forked child of a rank, which has no connection of its own."""
        return not self._channel.closed

    # --- the main thread ----------------------------------------------------------------------

    def serve(self) -> int:
        """Set the rank up, then run cells until told to exit.

        Returns:
            The exit code: that of the last cell.
        """
        started, error = user_code(self._start, heed_missed=True)
        if started is None:
            self._report(error or KeyboardInterrupt(), None)
            return 1
        shell, groups, command = started
        code = 0
        while True:
            match command:
                case RunCell():
                    code = self._run_cell(shell, command)
                    if self._settings.kept:
                        self._tell_idle()
                case NewGroup(number=number):
                    self._renew(groups, number)
                case Exit():
                    return code
            command = self._commands.get()

    def _start(self) -> tuple[CellShell, ProcessGroups, RunCell | NewGroup | Exit]:
        """Set up what a cell finds, and wait for the first command."""
        self._device = device = self._set_device()
        self._groups = groups = ProcessGroups(RunDirectory(Path(self._settings.directory)))
        if self._settings.init_process_group:
            groups.init(backend=self._backend(), timeout=self._timeout())
        names = {
            "rank": self.rank,
            "local_rank": self.local_rank,
            "world_size": self.world_size,
            "device": device,
        }
        shell = start_shell(self, names)
        self._channel.send(WorkerReady(rank=self.rank, time=now(), device=str(device)))
        return shell, groups, self._commands.get()

    def _tell_idle(self) -> None:
        """Tell that the cell is over, in a session; a rank of one cell just ends."""
        self._phase = Phase.IDLE
        has_group = torch.distributed.is_initialized() or not self._settings.init_process_group
        self._channel.send(Idle(rank=self.rank, time=now(), group=has_group))

    def _set_device(self) -> torch.device:
        if self._settings.device != "cuda" or not torch.cuda.is_available():
            return torch.device("cpu")
        gpus, ranks = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
        if ranks > gpus and "nccl" in (self._settings.backend or "nccl"):
            # The kernel has checked what nvidia-smi shows; this is what CUDA sees.
            raise RuntimeError(f"{ranks} ranks and {gpus} GPUs: nccl needs a GPU for each rank")
        device = torch.device("cuda", self.local_rank % gpus)
        torch.cuda.set_device(device)
        return device

    def _backend(self) -> str:
        own = "cpu:gloo,cuda:nccl" if self._device.type == "cuda" else "gloo"
        return self._settings.backend or own

    def _timeout(self) -> timedelta | None:
        timeout_s = self._settings.timeout_s
        return None if timeout_s is None else timedelta(seconds=timeout_s)

    def _renew(self, groups: ProcessGroups, number: int) -> None:
        wanted = self._settings.init_process_group
        try:
            groups.renew(
                number, backend=self._backend() if wanted else None, timeout=self._timeout()
            )
        except Exception as error:  # noqa: BLE001 -- torch's and the network's; the kernel shows it
            self._report(error, None)
            return
        ready = WorkerReady(rank=self.rank, time=now(), device=str(self._device))
        self._channel.send(ready)

    def _run_cell(self, shell: CellShell, command: RunCell) -> int:
        self._cells += 1
        self._cell_path = command.name
        self._call = command.call
        number = command.execution_count
        self._label = "Cell" if number is None else f"Cell In[{number}]"
        self._open_standard_streams()
        self._install_interrupts()
        sys.argv[:] = [command.name, *command.argv]
        self._for_children.add_cell(command.path, command.prelude, command.name)
        _seed(command.seed)
        self._phase = Phase.RUNNING
        self._wake(b"c")  # the heartbeat slept while nothing happened
        before: dict[str, Any] = {}
        versions: dict[str, int] = {}

        def run() -> BaseException | None:
            child_main.provide_prelude(shell.user_ns, command.prelude)
            self._refresh_modules()
            self._take_over(shell)
            before.update(shell.user_ns)
            versions.update(_versions(before))
            return shell.run_file(command)

        error, interrupted = user_code(run, heed_missed=True)
        self._phase = Phase.EXITING
        _flush()
        code = self._tell_end(error or interrupted, shell)
        self._tell_imports()
        if self._settings.kept:
            self._modules.note()
        self._tell_names(shell, before, versions)
        self._send_results(command, shell)
        return code

    def _tell_end(self, error: BaseException | None, shell: CellShell) -> int:
        if error is None:
            self._channel.send(Finished(rank=self.rank, time=now()))
            return 0
        if isinstance(error, SystemExit):
            return self._report_exit(error)
        self._report(error, shell)
        return 1

    def _refresh_modules(self) -> None:
        """Have what the user has edited since the session's last cell."""
        for line in self._modules.refresh():
            if self.rank == 0:
                print(line)  # noqa: T201 -- a line of the cell's

    def _take_over(self, shell: CellShell) -> None:
        """Give the cell the values that the notebook has sent."""
        command, self._captured = self._captured, None
        if command is None:
            return
        shell.user_ns.update(received_values.receive(command, self._segments, shell.user_ns))
        shell.know_sources(command.sources)
        described = received_values.for_children(command, self._segments)
        self._for_children.add_captured(described, command.names)
        needed = self._for_children.drop_captured(command.keep)
        for number in set(self._segments) - {*needed, *command.keep}:
            self._segments.pop(number).close()

    def _tell_names(
        self, shell: CellShell, before: dict[str, Any], versions: dict[str, int]
    ) -> None:
        """Tell what the cell has bound, and what of it ends with this rank."""
        if self.rank != 0:
            return
        now = shell.user_ns
        names = [n for n, value in now.items() if before.get(n, _MISSING) is not value]
        names = [n for n in names if n not in shell.user_ns_hidden]
        values = [
            n for n in names if not n.startswith("_") and not isinstance(now[n], _DEFINITIONS)
        ]
        # What came from the notebook may have been trained here.
        trained = {n for n, count in _versions(before).items() if count != versions.get(n)}
        values += sorted(trained - set(names))
        self._channel.send(CellNames(rank=0, names=tuple(names), values=tuple(values)))

    def _send_results(self, command: RunCell, shell: CellShell) -> None:
        paths = [path for path, rank in command.pull if rank in (None, self.rank)]
        if not paths:
            return
        directory = RunDirectory(Path(command.path).parent)
        sent, error = user_code(
            lambda: sent_values.send(self.rank, paths, shell.user_ns, directory)
        )
        if sent is None:  # a value's own code was interrupted
            failed = dict.fromkeys(paths, f"could not be sent ({type(error).__name__})")
            sent = Results(rank=self.rank, failed=failed), None
        event, segment = sent
        self._channel.send(event, fd=None if segment is None else segment.fd)
        if segment is not None:
            segment.close()

    def _tell_imports(self) -> None:
        """Tell which libraries the next run will probably need."""
        if self.rank != 0:
            return
        # Newest first: to look at a module's name is to write to its page, which until then is
        # shared with the forkserver; of thousands of modules that is 20 MB.
        new: dict[str, Any] = {}
        try:
            for name in itertools.takewhile(self._newest_module.__ne__, reversed(sys.modules)):
                new[name] = sys.modules[name]
        except RuntimeError:  # a thread of the cell's is importing
            return
        if modules := libraries.libraries(dict(reversed(new.items()))):
            self._channel.send(Imported(rank=0, modules=tuple(modules)))

    def _report_exit(self, error: SystemExit) -> int:
        """Report `sys.exit(...)` with the interpreter's rules: a string is code 1."""
        number = error.code is None or isinstance(error.code, int)
        message = "" if number else user_code(lambda: str(error.code))[0] or UNREADABLE
        code = error.code if isinstance(error.code, int) else int(bool(message))
        code &= 0xFF  # what the operating system keeps of it
        message = _shorten(message)
        self._channel.send(Finished(rank=self.rank, time=now(), code=code, message=message))
        return code

    def _report(self, error: BaseException, shell: CellShell | None) -> None:
        """Report an error at once, and again with what only the user's own code can say of it.

        The second report may take long (a `__str__`, the values of an exception group), and the
        rank may be ended meanwhile.
        """
        cell_frames = _cell_frames(error.__traceback__, self._cell_path)
        tb = cell_frames[0] if cell_frames else error.__traceback__
        if cell_frames and self._call:  # the line that calls the user's function
            tb = cell_frames[0].tb_next
        kind = type(error)
        known = Error(
            rank=self.rank,
            time=now(),
            ename=kind.__name__,
            evalue=(text := _shorten(_safe_text(error))),
            traceback=(*self._plain_frames(tb), f"{kind.__name__}: {text}"),
            line=cell_frames[-1].tb_lineno if cell_frames else None,
            classes=tuple(
                f"{c.__module__}:{c.__qualname__}"
                for c in kind.__mro__
                if c not in (object, BaseException, Exception)
            ),
        )
        self._channel.send(known)
        # A peer that has failed too may end first: the agent leaves us a moment after SIGTERM.
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        evalue, problem = user_code(lambda: str(error))
        if isinstance(evalue, str):
            known = dataclasses.replace(known, evalue=_shorten(evalue))
        if not isinstance(problem, KeyboardInterrupt):  # it would only begin again
            lines, _ = user_code(lambda: _format(error, shell, tb))
            lines = lines or list(known.traceback)
            known = dataclasses.replace(known, traceback=tuple(map(_shorten, lines)))
        self._channel.send(known)
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    def _plain_frames(self, tb: TracebackType | None) -> list[str]:
        """Format frames without a call of the user's code."""
        lines = []
        for frame in traceback.extract_tb(tb):
            if not is_ours(frame.filename):
                in_cell = frame.filename == self._cell_path
                file = self._label if in_cell else f'File "{frame.filename}"'
                lines.append(f"{file}, line {frame.lineno}, in {frame.name}")
                lines.append(f"    {frame.line}")
        return lines

    def give_up(self, error: Exception) -> int:
        """Report what has ended `serve`: a cell that changed what ddp_magic too runs on.

        Returns:
            The exit code.
        """
        try:
            self._report(error, None)
        except Exception:  # noqa: BLE001 -- for the same reason, most often
            said = f"rank {self.rank} cannot go on after its cell: {_last_line(error)}\n"
            with contextlib.suppress(OSError):
                os.write(2, said.encode())
        return 1

    def exit(self, code: int) -> NoReturn:
        """End as an interpreter does: threads first, then exit handlers, then the queues' threads.

        After a failure they have `FAILED_EXIT_S` together. An interrupt ends what is waited for,
        and the next step follows. The process group is left as it is: destroying it while a DDP
        object lives can deadlock, and the end of the process closes it.
        """
        self._phase = Phase.EXITING
        if code:
            # The cell may have used up the descriptors, or the memory for one more thread.
            with contextlib.suppress(OSError, RuntimeError):
                nowhere = open(os.devnull, "w")  # noqa: SIM115, PTH123 -- it must outlive this frame
                faulthandler.dump_traceback_later(FAILED_EXIT_S, exit=True, file=nowhere)
        shutdown = [] if code else [threading._shutdown]  # type: ignore[attr-defined]
        for step in [*shutdown, atexit._run_exitfuncs, end_names, _join_queues]:
            # Exit handlers are the user's chance to save: a missed interrupt ends only a stuck one.
            saves = step is atexit._run_exitfuncs
            if saves:
                interrupts.send_missed_later(SAVE_S)
            _, error = user_code(step, heed_missed=not saves)
            if isinstance(error, KeyboardInterrupt):
                self._tell_interrupted()
        _flush()
        os._exit(code)

    def _unraisable(self, show: Callable[[Any], None], args: Any) -> None:  # noqa: ANN401 -- sys's own
        """Show what a destructor or an exit handler raises, as Python does; but no interrupt."""
        if isinstance(args.exc_value, KeyboardInterrupt):
            if self._phase is Phase.EXITING:
                self._tell_interrupted()
            else:  # a destructor was interrupted, and the cell goes on as if nothing had been
                interrupts.send_later(AGAIN_S)
            return
        if args.exc_value is not None:
            without_ours(args.exc_value)
            args = type(args)((*args[:2], args.exc_value.__traceback__, *args[3:]))
        show(args)

    def _tell_interrupted(self) -> None:
        self._channel.send(Interrupted(rank=self.rank, time=now()))


def main(settings: WorkerSettings) -> NoReturn:
    """Be a rank, until its last cell has run."""
    try:
        _forget_the_agent(settings)
        worker = Worker(settings)
    except Exception as error:  # noqa: BLE001 -- the kernel shows this line of the agent's log
        os.write(2, f"{NOT_STARTED} {os.environ['RANK']}: {_last_line(error)}\n".encode())
        os._exit(1)
    try:
        code = worker.serve()
    except Exception as error:  # noqa: BLE001 -- anything; what is left is to say so
        code = worker.give_up(error)
    worker.exit(code)


def _join_queues() -> None:
    """Let the threads of queues end, which the exit handlers have told to.

    They are daemons, and the last to hold their queue's semaphores: where one is cut off, the
    semaphores' tracker warns of a leak.
    """
    deadline = monotonic() + QUEUES_S
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(max(0.0, deadline - monotonic()))


def _forget_the_agent(settings: WorkerSettings) -> None:
    """Take a fresh interpreter's state where a fork has its parent's."""
    os.environ["MASTER_PORT"] = str(settings.master_port)
    processes.tie_forked_children()
    # Temporary directories of libraries that the forkserver has imported are not this rank's.
    atexit.unregister(shutil.rmtree)
    random.seed()
    torch.default_generator.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    _set_threads()
    builtins.input = _no_input
    sys.breakpointhook = _no_breakpoint


def _set_threads() -> None:
    """Give thread pools that were held at one in the forkserver the size of a fresh process's."""
    wanted = threads_wanted(os.environ) or _cores()
    if wanted != 1 or torch.get_num_threads() != 1:
        torch.set_num_threads(wanted)
        threadpoolctl.threadpool_limits(wanted)  # NumPy's and SciPy's; it stays as it is set


def _cores() -> int:
    """Return what torch takes by itself: a thread for each core, not for each hyperthread."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def _seed(seed: int | None) -> None:
    if seed is None:
        return
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _versions(names: dict[str, Any]) -> dict[str, int]:
    """Return how often the parameters of modules have been written to, by name."""
    modules = {n: v for n, v in names.items() if isinstance(v, torch.nn.Module)}
    return {n: sum(p._version for p in m.parameters()) for n, m in modules.items()}


def _no_input(prompt: object = "") -> NoReturn:
    rank = os.environ["RANK"]
    raise RuntimeError(
        f"rank {rank} asked for input ({prompt!s}): ranks have no keyboard. Ask in an ordinary "
        "cell and pass the answer after `--`: it is sys.argv[1:] in the cell"
    )


def _no_breakpoint(*_args: object, **_kwargs: object) -> NoReturn:
    rank = os.environ["RANK"]
    raise RuntimeError(
        f"rank {rank} came to a breakpoint(): ranks have no keyboard. Print, or run the cell "
        "without %%ddp to debug it"
    )


def _cell_frames(tb: TracebackType | None, path: str) -> list[TracebackType]:
    frames = []
    while tb is not None:
        if tb.tb_frame.f_code.co_filename == path:
            frames.append(tb)
        tb = tb.tb_next
    return frames


def _format(error: BaseException, shell: CellShell | None, tb: TracebackType | None) -> list[str]:
    """Format a traceback as the notebook does, beginning at the cell's own first frame."""
    error.__traceback__ = tb
    without_ours(error)
    tb = error.__traceback__
    if shell is not None:
        with contextlib.suppress(Exception):  # a repr that raises must not hide its error
            return shell.format_error(error, tb)
    return traceback.format_exception(type(error), error, tb)


def _safe_text(error: BaseException) -> str:
    """Return an exception's text, if that takes no code of the user's."""
    plain = all(type(arg) in (str, int, float, type(None)) for arg in error.args)
    # Written in C, as those of Python's and torch's own exceptions.
    builtin = isinstance(type(error).__str__, types.WrapperDescriptorType)
    return str(error) if plain and builtin else UNREADABLE


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(type(error), error)[-1].strip()


def _out_of_the_way(fd: int) -> int:
    """Move a descriptor to a high number, which no loop of the user's closes by accident."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lowest = HIGH_FD if limit == resource.RLIM_INFINITY else min(HIGH_FD, limit * 3 // 4)
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    except OSError:  # so many are open already
        return fd
    os.close(fd)
    return moved


def _shorten(text: str) -> str:
    """Cut what nobody would read, and no frame could carry."""
    if len(text) <= ERROR_CHARS:
        return text
    return f"{text[:ERROR_CHARS]} ... ({len(text):,} characters)"


class _Descriptor(io.FileIO):
    """A descriptor that writes all it is given; FileIO's own write may stop short at a signal."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 -- any buffer
        """Write everything, and at once."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        return done


def _text_stream(fd: int) -> io.TextIOWrapper:
    """Return a stream that writes at once: a `print(".", end="")` is seen, as in a notebook."""
    return io.TextIOWrapper(
        _Descriptor(fd, "wb", closefd=False),  # as Python itself does for -u
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
        write_through=True,
    )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # the cell closed or replaced it


def _grow_pipe(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (OSError, AttributeError):
        pass  # over the user's limit: 64 KB do too


def _rss_mib() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 2**20


def _device_mib() -> float | None:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return torch.cuda.memory_reserved() / 2**20
