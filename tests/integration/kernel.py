"""A real Jupyter kernel, driven cell by cell. Every wait has a bound."""

from __future__ import annotations

import os
import queue
import re
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.kernelspec import KernelSpec

from tests.limits import HANG_S, within

CELL_S = HANG_S
_OUTPUTS = (
    "stream", "display_data", "update_display_data", "execute_result", "error", "clear_output",
)  # fmt: skip

# For a cell: what a process holds open. Another thread may close one while the list is made.
DESCRIPTORS = """
import os
def descriptors():
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return found
"""

# For a cell, one line: a rank that waits in C code for ever, and holds the interpreter lock. It
# answers no interrupt, and needs no CPU.
DEAF = (
    "import ctypes; lock = ctypes.create_string_buffer(64); "
    "wait = ctypes.PyDLL(None).pthread_mutex_lock; wait(lock); wait(lock)"
)


@dataclass
class Result:
    """What a cell showed.

    Attributes:
        status: "ok" or "error", from the reply.
        shown: All stream text, without colors.
        outputs: Every output message's (type, content), in order, streams included.
        elapsed_s: From request to idle.
    """

    status: str = ""
    shown: str = ""
    outputs: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def text(self) -> str:
        """All stream text; a line of all ranks as a line of each."""
        return unfolded(self.shown)

    @property
    def lines(self) -> list[str]:
        """The lines of `text`."""
        return self.text.splitlines()

    @property
    def visible(self) -> list[str]:
        """The text of the outputs that can be seen at the end: streams and displays, in order."""
        seen: list[tuple[str, str]] = []
        waits = False
        for kind, content in self.outputs:
            if kind == "clear_output":
                waits = content["wait"]
                seen = seen if waits else []
                continue
            if waits and kind != "update_display_data":
                seen, waits = [], False
            name = content.get("transient", {}).get("display_id", "")
            words = plain(content.get("text") or content.get("data", {}).get("text/plain", ""))
            if kind == "update_display_data":
                seen = [(old, words if old == name else text) for old, text in seen]
            else:
                seen.append((name, words))
        return [text for _, text in seen]

    @property
    def error(self) -> dict[str, Any]:
        """The error output, or the reply's (a UsageError is text on stderr); empty if none."""
        return next((c for kind, c in self.outputs if kind == "error"), self.reply)

    @property
    def traceback(self) -> str:
        """The error's traceback, without colors."""
        return plain("\n".join(self.error.get("traceback", [])))

    @property
    def displays(self) -> list[dict[str, Any]]:
        """The displays of ranks (not the status table)."""
        return [
            content
            for kind, content in self.outputs
            if kind in ("display_data", "update_display_data") and "ddp" in content["metadata"]
        ]

    @property
    def summary(self) -> str:
        """The status table's last state."""
        tables = [
            content["data"]["text/plain"]
            for kind, content in self.outputs
            if kind in ("display_data", "update_display_data") and "ddp" not in content["metadata"]
        ]
        return tables[-1] if tables else ""


def plain(text: str) -> str:
    """Remove terminal colors."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def unfolded(text: str) -> str:
    """Return text with a line for each rank where one stands for all: `[ranks 0-1] ...`."""

    def each(found: re.Match[str]) -> str:
        ends = [[int(n) for n in part.split("-")] for part in found[1].split(", ")]
        ranks = [rank for end in ends for rank in range(end[0], end[-1] + 1)]
        return "".join(f"[rank {rank}]{found[2]}" for rank in ranks)

    return re.sub(r"^\[ranks ([\d, -]+)\](.*\n)", each, text, flags=re.MULTILINE)


class Kernel:
    """A running kernel.

    Args:
        cwd: Its working directory.
        env: Variables beside this process's own.
        prefix: Words put before the kernel's command line (`unshare ...`).
    """

    def __init__(
        self, cwd: Path, env: dict[str, str] | None = None, prefix: Iterable[str] = ()
    ) -> None:
        argv = [*prefix, sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = KernelSpec(argv=argv, display_name="test", language="python")
        self.manager = KernelManager(transport="ipc")
        self.manager._kernel_spec = spec
        self.manager.ip = str(cwd / "ipc")
        self.manager.start_kernel(cwd=str(cwd), env={**os.environ, **(env or {})})
        self.client: BlockingKernelClient = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=HANG_S)

    @property
    def pid(self) -> int:
        """The kernel's process id."""
        return int(self.manager.provisioner.process.pid)

    def start(self, code: str, *, can_ask: bool = False) -> str:
        """Send a cell; return its message id.

        Args:
            code: The cell.
            can_ask: Whether the front end answers questions; see `question` and `answer`.
        """
        # After an error an older ipykernel answers what comes soon by "aborted".
        return str(self.client.execute(code, allow_stdin=can_ask, stop_on_error=False))

    def question(self, message_id: str, timeout_s: float = CELL_S) -> str:
        """Wait for an input box of a cell; return its prompt, with a `*` before it for a password.

        Raises:
            TimeoutError: None came.
        """
        while True:  # a box of an earlier cell may have been withdrawn
            try:
                message = self.client.get_stdin_msg(timeout=timeout_s)
            except queue.Empty:
                raise TimeoutError(f"no question in {timeout_s} s") from None
            if message["parent_header"].get("msg_id") == message_id:
                content = message["content"]
                return ("*" if content["password"] else "") + str(content["prompt"])

    def answer(self, text: str) -> None:
        """Answer the question of the box."""
        self.client.input(text)

    def talk(self, code: str, *answers: str) -> tuple[list[str], Result]:
        """Run a cell to its end and answer its questions in turn; return these and its outputs."""
        message_id = self.start(code, can_ask=True)
        prompts = []
        for text in answers:
            prompts.append(self.question(message_id))
            self.answer(text)
        return prompts, self.finish(message_id)

    def run(self, code: str, timeout_s: float = CELL_S) -> Result:
        """Run a cell to its end."""
        return self.finish(self.start(code), timeout_s)

    def finish(self, message_id: str, timeout_s: float = CELL_S, *, until: str = "") -> Result:
        """Collect a cell's outputs, to its end or until its text contains `until`.

        Raises:
            TimeoutError: It took longer; what was seen so far is in the message.
        """
        result = Result()
        began = time.monotonic()
        while True:
            left = timeout_s - (time.monotonic() - began)
            try:
                message = self.client.get_iopub_msg(timeout=max(left, 0.01))
            except queue.Empty:
                raise TimeoutError(f"after {timeout_s} s: {result}") from None
            if message["parent_header"].get("msg_id") != message_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                break
            if kind == "stream":
                result.shown += plain(content["text"])
            if kind in _OUTPUTS:
                result.outputs.append((kind, content))
            if until and until in result.text:
                return result
        result.elapsed_s = time.monotonic() - began
        reply = self.client.get_shell_msg(timeout=HANG_S)
        while reply["parent_header"].get("msg_id") != message_id:
            reply = self.client.get_shell_msg(timeout=HANG_S)
        result.status = reply["content"]["status"]
        result.reply = reply["content"] if result.status == "error" else {}
        return result

    def interrupt(self) -> None:
        """Press Stop."""
        self.manager.interrupt_kernel()

    def value(self, expression: str) -> Any:
        """Return the value of a literal expression in the kernel."""
        import ast

        result = self.run(f"print(repr({expression}))")
        assert result.status == "ok", result.traceback
        return ast.literal_eval(result.text.strip())

    def forkserver(self) -> psutil.Process | None:
        """Return the kernel's forkserver, if it has one (the newest: an old one may be ending)."""
        return max(self._forkservers(), key=lambda p: p.create_time(), default=None)

    def _forkservers(self) -> list[psutil.Process]:
        found = []
        try:
            for process in psutil.Process(self.pid).children():
                if is_alive(process.pid) and "ddp_magic.node.forkserver" in " ".join(
                    process.cmdline()
                ):
                    found.append(process)
        except psutil.NoSuchProcess:
            pass
        return found

    def processes(self) -> list[psutil.Process]:
        """Return the kernel's living descendants, but for its forkserver."""
        own = self._forkservers()
        try:
            below = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [p for p in below if p not in own and is_alive(p.pid)]

    def kill(self) -> None:
        """SIGKILL the kernel alone, as the out-of-memory killer would."""
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Shut the kernel down."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def wait_gone(pids: Iterable[int], timeout_s: float) -> list[int]:
    """Wait until these processes are gone; return those that are not.

    A machine that turns out to be slow gets its time.
    """
    began = time.monotonic()
    left = list(pids)
    while left and within(time.monotonic() - began, timeout_s):
        left = [pid for pid in left if is_alive(pid)]
        time.sleep(0.02)
    return left


def is_alive(pid: int) -> bool:
    """Return whether a process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def frames_of_ours(text: str) -> list[str]:
    """Return the files of ddp_magic, except those of the SAM library, that a text names."""
    return re.findall(r"ddp_magic/(?!sam/)[\w/]*\.py", text)


def pids_in(text: str) -> list[int]:
    """Return the numbers that a cell printed as `pid=...`."""
    return [int(number) for number in re.findall(r"pid=(\d+)", text)]
