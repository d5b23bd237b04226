"""One rank: a process that runs cells and tells its kernel what happens.

The main thread runs the cell in a small IPython shell. Two daemon threads stand beside it: one
listens for commands, one sends heartbeats and acknowledges interrupts. Descriptors 1 and 2 are a
pipe whose read end the kernel holds, so that the last words before a SIGKILL arrive too.
"""

from __future__ import annotations

import atexit
import builtins
import faulthandler
import io
import itertools
import os
import queue
import random
import resource
import secrets
import select
import signal
import sys
import threading
import time
import types
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import psutil
import threadpoolctl
import torch

from ddp_magic import capture, cell_main, preload, processes, results
from ddp_magic.agent_spec import WorkerSettings
from ddp_magic.channel import connect
from ddp_magic.environment import threads_wanted
from ddp_magic.errors import ProtocolError
from ddp_magic.events import (
    Captured,
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
    RunCell,
    SharedMemory,
    Stayed,
    WorkerHello,
    WorkerReady,
)
from ddp_magic.memory import Segment
from ddp_magic.process_group import ProcessGroups
from ddp_magic.shell import CellShell, start_shell

HEARTBEAT_S = 0.25
FAILED_EXIT_S = 1.0  # for the exit handlers of a rank that failed: its peers wait for its end
QUEUES_S = 0.3  # for the threads of multiprocessing's queues to give back their semaphores
PIPE_BYTES = 2**20
FREE_S = 0.3  # for Python code to take an interrupt by itself
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
        self._phase = "starting"
        self._cell_path = ""
        self._mark = 0
        self._mark_lock = threading.Lock()
        self._marker = f"\x1b]ddp_magic;{secrets.token_hex(8)};"
        self._commands: queue.SimpleQueue[RunCell | NewGroup | Exit] = queue.SimpleQueue()
        self._groups: ProcessGroups | None = None
        self._segments: dict[int, Segment] = {}
        self._captured: Captured | None = None
        self._for_children = cell_main.Inheritance(
            Path(settings.directory) / f"children{self.rank}.json"
        )
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_w, False)
        self._channel = connect(settings.socket)
        self._redirect_descriptors()
        signal.signal(signal.SIGINT, self._on_sigint)
        for target in (self._listen, self._beat):
            threading.Thread(target=target, name=f"ddp_magic{target.__name__}", daemon=True).start()

    def _redirect_descriptors(self) -> None:
        """Hand the read end of our text to the kernel, then write to it.

        In this order, so that a failure to reach the kernel is told in the agent's log.
        """
        stacks = Path(self._settings.directory) / f"rank{self.rank}.stacks"
        # C handlers: they answer also while C code holds the interpreter lock. Before the hello,
        # since from then on the kernel may ask.
        faulthandler.register(signal.SIGUSR1, file=stacks.open("w"), all_threads=True)
        read_end, self._pipe = os.pipe()
        _grow_pipe(self._pipe)
        hello = WorkerHello(rank=self.rank, pid=os.getpid(), marker=self._marker)
        if not self._channel.send(hello, fd=read_end):
            raise ConnectionError("the kernel has closed its connection")
        os.close(read_end)
        os.dup2(self._pipe, 1)
        os.dup2(self._pipe, 2)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        sys.stdout = sys.__stdout__ = _text_stream(1)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _text_stream(2)  # type: ignore[misc]
        faulthandler.enable(file=2, all_threads=False)

    # --- threads ------------------------------------------------------------------------------

    def _listen(self) -> None:
        while True:
            try:
                commands = self._channel.receive()
            except ProtocolError:
                commands = None
            if commands is None:  # the kernel is gone, and so are we
                os.killpg(os.getpgrp(), signal.SIGKILL)
            for command in commands or []:
                match command:
                    case Interrupt(free=free):
                        os.kill(os.getpid(), signal.SIGINT)
                        if free:
                            threading.Timer(FREE_S, self._free).start()
                    case SharedMemory(number=number, sizes=sizes):
                        fd = self._channel.received_fds.pop(0)
                        self._segments[number] = Segment(fd, sizes)
                    case Captured():  # for the cell that comes next
                        self._captured = command
                    case RunCell() | NewGroup() | Exit():
                        self._commands.put(command)
                        self._wake(b"c")

    def _beat(self) -> None:
        while True:
            idle = self._phase == "idle"  # nobody listens then, and nothing happens
            ready = select.select([self._wake_r], [], [], None if idle else HEARTBEAT_S)[0]
            if ready and b"i" in os.read(self._wake_r, 64):
                self._channel.send(Interrupted(rank=self.rank, time=time.time()))
            self._channel.send(
                Heartbeat(
                    rank=self.rank,
                    time=time.time(),
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

    def _on_sigint(self, _signum: int, _frame: FrameType | None) -> None:
        self._wake(b"i")
        # Between the cells of a session there is nothing to interrupt but ourselves.
        if self._phase in ("starting", "running") or not self._settings.kept:
            raise KeyboardInterrupt

    def _free(self) -> None:
        """Let the cell go on to its KeyboardInterrupt, if it waits in a collective."""
        if self._phase == "running" and self._groups is not None:
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
        """Let this rank's next rich output take the place of its last."""
        self._send_marked(lambda mark: ClearOutput(rank=self.rank, mark=mark))

    def _send_marked(self, event: Any) -> None:  # noqa: ANN401 -- a function of the mark
        sys.stdout.flush()
        sys.stderr.flush()
        with self._mark_lock:
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
        shell: CellShell | None = None
        code = 0
        try:
            device = self._set_device()
            self._groups = groups = ProcessGroups(Path(self._settings.directory))
            self._device = device
            if self._settings.init_process_group:
                groups.init(backend=self._backend(), timeout=self._timeout())
            shell = start_shell(
                self,
                {
                    "rank": self.rank,
                    "local_rank": self.local_rank,
                    "world_size": self.world_size,
                    "device": device,
                },
            )
            self._channel.send(WorkerReady(rank=self.rank, time=time.time(), device=str(device)))
            command = self._commands.get()
        except BaseException as error:  # noqa: BLE001 -- every failure to start is the kernel's to show
            self._report(error, shell)
            return 1
        while True:
            match command:
                case RunCell():
                    code = self._run_cell(shell, command)
                    self._phase = "idle"
                    self._channel.send(Idle(rank=self.rank, time=time.time()))
                case NewGroup(number=number):
                    self._renew(groups, number)
                case Exit():
                    return code
            command = self._commands.get()

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
        ready = WorkerReady(rank=self.rank, time=time.time(), device=str(self._device))
        self._channel.send(ready)

    def _run_cell(self, shell: CellShell, command: RunCell) -> int:
        self._cell_path = command.path
        sys.argv[:] = [command.path, *command.argv]
        self._for_children.add_cell(command.path, command.prelude)
        _seed(command.seed)
        self._phase = "running"
        before: dict[str, Any] = {}
        versions: dict[str, int] = {}
        error: BaseException | None
        try:
            cell_main.provide_prelude(shell.user_ns, command.prelude)
            self._take_over(shell)
            before = dict(shell.user_ns)
            versions = _versions(before)
            error = shell.run_file(command)
        except BaseException as raised:  # noqa: BLE001 -- an interrupt between the shell's own lines
            error = raised
        self._phase = "exiting"
        _flush()
        code = self._tell_end(error, shell)
        self._tell_imports()
        self._tell_names(shell, before, versions)
        self._send_results(command, shell)
        return code

    def _tell_end(self, error: BaseException | None, shell: CellShell) -> int:
        if error is None:
            self._channel.send(Finished(rank=self.rank, time=time.time()))
            return 0
        if isinstance(error, SystemExit):
            return self._report_exit(error)
        self._report(error, shell)
        return 1

    def _take_over(self, shell: CellShell) -> None:
        """Give the cell the values that the notebook has sent."""
        command, self._captured = self._captured, None
        if command is None:
            return
        shell.user_ns.update(capture.receive(command, self._segments, shell.user_ns))
        shell.know_sources(command.sources)
        described = capture.for_children(command, self._segments)
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
        self._channel.send(Stayed(rank=0, names=tuple(names), values=tuple(values)))

    def _send_results(self, command: RunCell, shell: CellShell) -> None:
        paths = [path for path, rank in command.pull if rank in (None, self.rank)]
        if paths:
            directory = Path(command.path).parent
            event, segment = results.send(self.rank, paths, shell.user_ns, directory)
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
        if modules := preload.libraries(dict(reversed(new.items()))):
            self._channel.send(Imported(rank=0, modules=tuple(modules)))

    def _report_exit(self, error: SystemExit) -> int:
        """Report `sys.exit(...)` with the interpreter's rules: a string is code 1."""
        message = "" if error.code is None or isinstance(error.code, int) else str(error.code)
        code = error.code if isinstance(error.code, int) else int(bool(message))
        code &= 0xFF  # what the operating system keeps of it
        self._channel.send(Finished(rank=self.rank, time=time.time(), code=code, message=message))
        return code

    def _report(self, error: BaseException, shell: CellShell | None) -> None:
        now = time.time()
        cell_frames = _cell_frames(error.__traceback__, self._cell_path)
        self._channel.send(
            Error(
                rank=self.rank,
                time=now,
                ename=type(error).__name__,
                evalue=_text(error),
                traceback=tuple(_format(error, shell, self._cell_path)),
                line=cell_frames[-1].tb_lineno if cell_frames else None,
                classes=tuple(
                    f"{c.__module__}:{c.__qualname__}"
                    for c in type(error).__mro__
                    if c not in (object, BaseException, Exception)
                ),
            )
        )

    def exit(self, code: int) -> NoReturn:
        """End as an interpreter does: threads first, then exit handlers, then the queues' threads.

        After a failure they have `FAILED_EXIT_S` together. The process group is left as it is:
        destroying it while a DDP object lives can deadlock, and the end of the process closes it.
        """
        self._phase = "exiting"
        if code:
            nowhere = open(os.devnull, "w")  # noqa: SIM115, PTH123 -- it must outlive this frame
            faulthandler.dump_traceback_later(FAILED_EXIT_S, exit=True, file=nowhere)
        try:
            if not code:
                threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            _join_queues()
        except BaseException as error:  # noqa: BLE001 -- user code at the process's edge
            sys.excepthook(type(error), error, error.__traceback__)
        _flush()
        os._exit(code)


def main(settings: WorkerSettings) -> NoReturn:
    """Be a rank, until its last cell has run."""
    _forget_the_agent()
    worker = Worker(settings)
    code = worker.serve()
    worker.exit(code)


def _join_queues() -> None:
    """Let the threads of queues end, which the exit handlers have told to.

    They are daemons, and the last to hold their queue's semaphores: where one is cut off, the
    semaphores' tracker warns of a leak.
    """
    deadline = time.monotonic() + QUEUES_S
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(max(0.0, deadline - time.monotonic()))


def _forget_the_agent() -> None:
    """Take a fresh interpreter's state where a fork has its parent's."""
    processes.tie_forked_children()
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


def _format(error: BaseException, shell: CellShell | None, path: str) -> list[str]:
    """Format a traceback as the notebook does, beginning at the cell's own first frame."""
    import traceback

    frames = _cell_frames(error.__traceback__, path)
    tb = frames[0] if frames else error.__traceback__
    if shell is None:
        return traceback.format_exception(type(error), error, tb)
    try:
        return shell.format_error(error, tb)
    except Exception:  # noqa: BLE001 -- a repr that raises must not hide the error it belongs to
        return traceback.format_exception(type(error), error, tb)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 -- a user's own __str__
        return "<its text cannot be shown>"


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
    import fcntl

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
