"""A host: serves one background run as a kernel does, in a process of its own, without a notebook.

What a person is to see goes to the run's journal, and its live table to a file beside that; kernels
and terminals follow them. The host answers questions on a socket, as a kernel does. It never
imports torch. With `--bg` it ends with its kernel; with `--detach` only with its run.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from ddp_magic.display.outputs import Outputs
from ddp_magic.display.screen import CellScreen
from ddp_magic.display.table_place import TablePlace
from ddp_magic.kernel.background.start_host import HostStart
from ddp_magic.kernel.controller import Controller
from ddp_magic.kernel.execution.run import Run
from ddp_magic.kernel.values.capture import Notebook
from ddp_magic.system.libraries import current_directory
from ddp_magic.system.processes import continue_after_parent

TABLE_S = 1.0  # between two tables on disk
LOOK_S = 0.2  # at the kernel
TOUCH_S = 3600.0
END_S = 2.5  # for the run to end after its kernel


class NoOutputs(Outputs):
    """In place of a notebook's outputs: whoever follows the journal shows what they would."""

    def __init__(self) -> None:
        super().__init__(None)
        self.shows_displays = True
        self.status = None

    def write(self, text: str) -> None:
        """Show nothing: the journal has it."""


class TableFile(TablePlace):
    """Keeps the live table in a file, for those that follow the run.

    Args:
        outputs: The outputs.
        path: The file; it is replaced each time.
    """

    def __init__(self, outputs: Outputs, path: Path) -> None:
        super().__init__(outputs, "", "")
        self._path = path
        self._written: float | None = None

    def begin(self, line: str) -> None:
        """Do nothing: the journal has this line."""

    def show(self, text: str, markup: str, now: float, *, room: int) -> None:  # noqa: ARG002
        """Write the table, if it is time."""
        if self._written is not None and now - self._written < TABLE_S:
            return
        self._written = now
        fresh = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):  # a full disk, a directory that was removed
            fresh.write_text(json.dumps({"text": text, "html": markup}))
            fresh.replace(self._path)

    def close(self, line: str, *, head: str = "") -> None:
        """Do nothing: the journal has the closing line."""


def main() -> NoReturn:
    """Serve the run that stdin describes, to its end."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # A kernel may ignore it, which is inherited; then no child can be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    start: HostStart = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 -- our parent wrote it
    if not start.background.detached:
        continue_after_parent()
    sys.path[:] = start.sys_path
    if not current_directory():  # it has been removed, and torch could not be imported there
        os.chdir(start.directory)
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 -- the journal has the text
    serve(start)
    sys.stderr.flush()
    os._exit(0)


def serve(start: HostStart) -> None:
    """Serve a run to its end."""
    controller = Controller(Notebook({}), serves_one=True)
    if start.forkserver is not None:
        controller.forkserver.adopt(start.forkserver)
    run = start.make_run()
    end = run.stop if start.background.detached else run.end_with_kernel
    signal.signal(signal.SIGTERM, lambda *_: end())
    kernel_pid = None if start.background.detached else start.background.kernel
    threading.Thread(target=watch, args=(run, kernel_pid), daemon=True).start()
    controller.add(run)
    outputs = NoOutputs()
    table = TableFile(outputs, run.directory.table)
    screen = CellScreen(None, outputs=outputs, table_place=table)
    controller.execute(run, screen, cold=start.cold)
    controller.close()


def watch(run: Run, kernel_pid: int | None) -> None:
    """End the run, and this process, when the kernel has ended; say until then that it is needed.

    Args:
        run: The run.
        kernel_pid: Process id of the kernel that started it; None if it outlives that.
    """
    touched = time.monotonic()
    while kernel_pid is None or os.getppid() == kernel_pid:
        time.sleep(LOOK_S)
        if time.monotonic() - touched > TOUCH_S:  # its files are not those of an old run
            touched = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(run.directory.cell)
    run.end_with_kernel()
    time.sleep(END_S)
    os._exit(1)  # the main thread hangs; the ranks end with this process
