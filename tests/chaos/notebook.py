"""A notebook that faults are played in: its kernel, its disk, and all processes that come of it."""

from __future__ import annotations

import os
import queue
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil

from tests.chaos.programs import IMPORTED, MODULE, SLOW_IMPORT, VALUES
from tests.integration.kernel import Kernel, Result, plain
from tests.limits import HANG_S, within

DISK_BYTES = 48 * 1024 * 1024
_MARK = "DDP_MAGIC_CHAOS"  # an environment variable by which processes are recognized
_RUN = re.compile(r"\d{4}-\d{6}-\d+-\d+")
STACKS = int(signal.SIGUSR2)
POLL_S = 0.02


class Cell:
    """A cell that runs, and what it has shown so far.

    Attributes:
        result: What it has shown.
        ended: Whether it has ended.
        ended_at: When, on the monotonic clock, in seconds.
    """

    def __init__(self, kernel: Kernel, code: str) -> None:
        self.result = Result()
        self.ended = False
        self.ended_at = 0.0
        self._kernel = kernel
        self._message = kernel.start(code)

    def watch(self, for_s: float, *, until: str = "", busy: bool = False) -> bool:
        """Collect what it shows.

        Args:
            for_s: For how long at most, in seconds.
            until: Also end when its text contains this.
            busy: Also end when the kernel begins with it.

        Returns:
            Whether what was waited for has come; of the cell's end, if nothing else was.
        """
        deadline = time.monotonic() + for_s
        while not self.ended:
            if until and until in self.result.text:
                return True
            left = deadline - time.monotonic()
            try:
                message = self._kernel.client.get_iopub_msg(timeout=max(left, 0.001))
            except queue.Empty:
                return False
            if message["parent_header"].get("msg_id") != self._message:
                continue
            state = message["content"].get("execution_state")
            if state == "busy" and busy:
                return True
            if state == "idle":
                self._end()
            self._take(message["msg_type"], message["content"])
        return not until and not busy

    def _take(self, kind: str, content: dict[str, object]) -> None:
        if kind == "stream":
            self.result.shown += plain(str(content["text"]))
        if kind in ("stream", "display_data", "update_display_data", "execute_result", "error"):
            self.result.outputs.append((kind, content))

    def _end(self) -> None:
        self.ended, self.ended_at = True, time.monotonic()
        reply = self._kernel.client.get_shell_msg(timeout=HANG_S)
        while reply["parent_header"].get("msg_id") != self._message:
            reply = self._kernel.client.get_shell_msg(timeout=HANG_S)
        self.result.status = reply["content"]["status"]
        self.result.reply = reply["content"] if self.result.status == "error" else {}


class Notebook:
    """A kernel with a disk of its own, which is replaced when it has ended.

    Args:
        folder: An empty directory with a short path.
    """

    def __init__(self, folder: Path) -> None:
        self._mark = f"{_MARK}={folder}".encode()
        self._stacks = folder / "stacks"
        self._disk, self._work = folder / "disk", folder / "work"
        for path in (self._disk, self._work, folder / "tmp"):
            path.mkdir(parents=True)
        (self._work / f"{MODULE}.py").write_text(SLOW_IMPORT)
        self._env = {
            _MARK: str(folder), "XDG_CACHE_HOME": str(self._disk), "TMPDIR": str(folder / "tmp"),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._prefix: tuple[str, ...] = ()
        if os.geteuid() == 0 and _may_mount():
            mount = f"mount -t tmpfs -o size={DISK_BYTES} tmpfs {self._disk}"
            mount += f' && exec "$@" 2>> {folder}/kernel.log'
            self._prefix = ("unshare", "-m", "sh", "-c", mount, "sh")
        self._kernel: Kernel | None = None
        self._limits: tuple[int, int] | None = None

    @property
    def kernel(self) -> Kernel:
        """Its kernel; a new one, if that has ended."""
        if self._kernel is None:
            self._kernel = Kernel(self._work, self._env, self._prefix)
            self.load()
        return self._kernel

    def load(self) -> None:
        """Load the extension, and what the programs take from the notebook."""
        assert self._kernel is not None
        file = f"open({str(self._stacks)!r}, 'w')"
        dump = f"import faulthandler; faulthandler.register({STACKS}, {file})"
        ready = self._kernel.run(f"%load_ext ddp_magic\n{dump}\n{IMPORTED}\n{VALUES}")
        assert ready.status == "ok", ready

    def stacks(self) -> str:
        """Return the stacks of the kernel's threads, for a cell that does not end."""
        os.kill(self.kernel.pid, STACKS)
        time.sleep(1)
        return self._stacks.read_text()

    def discard(self) -> None:
        """End the kernel, whatever state it is in, and all its processes."""
        if self._kernel is not None:
            self._kernel.stop()
            self._kernel = None
        for process in self._marked():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    # --- its processes ------------------------------------------------------------------------

    def _marked(self) -> list[psutil.Process]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self._mark in path.read_bytes():
                    found.append(psutil.Process(int(path.parent.name)))
            except (OSError, psutil.NoSuchProcess):
                continue
        return found

    def left(self, promise_s: float, *, kernel_gone: bool = False) -> list[str]:
        """Wait until nothing is left of a run; return what is left of it then.

        Args:
            promise_s: For how long, in seconds; longer on a slow machine.
            kernel_gone: Whether the kernel and its forkserver must be gone, too.
        """
        began = time.monotonic()
        while True:
            spare = set()
            if self._kernel is not None and not kernel_gone:
                forkserver = self._kernel.forkserver()
                spare = {self._kernel.pid, forkserver.pid if forkserver else 0}
            left = [p for p in self._marked() if p.pid not in spare]
            if not left or not within(time.monotonic() - began, promise_s):
                return [_described(process) for process in left]
            time.sleep(POLL_S)

    def starting_agent(self, timeout_s: float) -> int | None:
        """Wait for an agent that the forkserver has forked; return its pid."""
        assert self._kernel is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            forkserver = self._kernel.forkserver()
            try:
                for child in forkserver.children() if forkserver else ():
                    if os.getsid(child.pid) == child.pid:  # else it only tries an import
                        return int(child.pid)
            except (psutil.NoSuchProcess, ProcessLookupError):
                pass
            time.sleep(POLL_S)
        return None

    # --- its disk and its limits --------------------------------------------------------------

    def _root(self) -> Path:
        if not self._prefix or self._kernel is None:
            return self._disk
        return Path(f"/proc/{self._kernel.pid}/root{self._disk}")

    def fill_disk(self) -> bool:
        """Fill the disk to the last byte; return whether it has one of its own."""
        if not self._prefix:
            return False
        with (self._root() / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 10, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue
        return True

    def free_disk(self) -> None:
        """Make room again, and remove the directories of ended runs."""
        (self._root() / "filler").unlink(missing_ok=True)
        for run in self._runs():
            shutil.rmtree(run, ignore_errors=True)

    def remove_runs(self) -> None:
        """Remove the run directories, as a cleaner of temporary files does."""
        self.free_disk()

    def stray_files(self) -> list[str]:
        """Return files of ended runs that nobody will read."""
        names = [path.name for run in self._runs() for path in run.glob("*")]
        stray = [n for n in names if n.startswith(("store", "children", "socket", "room", "error"))]
        own = {f"{MODULE}.py", "__pycache__", "ipc"}
        return stray + [p.name for p in self._work.iterdir() if p.name.split("-")[0] not in own]

    def _runs(self) -> list[Path]:
        runs = self._root() / "ddp_magic"
        return [p for p in runs.glob("*") if _RUN.fullmatch(p.name)] if runs.exists() else []

    def limit_descriptors(self, spare: int) -> None:
        """Let the kernel open only `spare` more descriptors."""
        pid = self.kernel.pid
        self._limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        highest = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + spare, self._limits[1]))

    def restore_descriptors(self) -> None:
        """Take back `limit_descriptors`."""
        if self._limits is not None and self._kernel is not None:
            resource.prlimit(self._kernel.pid, resource.RLIMIT_NOFILE, self._limits)
        self._limits = None


def _may_mount() -> bool:
    return subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0


def _described(process: psutil.Process) -> str:
    try:
        words = " ".join(process.cmdline())[:80]
        return f"{process.pid} ({process.status()}, child of {process.ppid()}): {words}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (just gone)"
