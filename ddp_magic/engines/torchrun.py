"""The engine that starts plain `torch.distributed.run`: nothing is preloaded."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import BinaryIO

from ddp_magic.system import libraries
from ddp_magic.system.entry_points import KEEPER, TORCHRUN, command, last_words, write_start
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.specs import SPEC_VARIABLE, AgentSpec


class TorchrunAgent:
    """A running `torch.distributed.run`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self.where = ""
        self._log = log

    def take_notes(self) -> list[str]:
        """Return nothing: there is nothing to say of its start."""
        return []

    def fileno(self) -> int:
        """Return -1: its end is found by polling."""
        return -1

    def ended(self) -> bool:
        """Return whether torchrun has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it at once; its keepers carry PDEATHSIG."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=5)

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def granted(self) -> int:
        """Return 1: this machine."""
        return 1

    def lost(self) -> None:
        """Return None: this machine is here."""

    def waits_for(self) -> str:
        """Return nothing: each rank imports for itself."""
        return ""

    def last_words(self) -> str:
        """Return the end of torchrun's log."""
        return last_words(self._log)

    def outside_end(self) -> None:
        """Return None: nobody says who has ended a process."""


def _open_log(path: Path) -> BinaryIO:
    try:
        return path.open("wb")
    except OSError:  # a full disk: the log is lost, the ranks are not
        return open(os.devnull, "wb")  # noqa: PTH123 -- no path of ours


class Torchrun:
    """The engine that starts torchrun."""

    def start(self, spec: AgentSpec, env: dict[str, str]) -> TorchrunAgent:
        """Start torchrun for the ranks of this machine."""
        directory = RunDirectory(Path(spec.worker.directory))
        argv = [
            *("--nnodes", "1", "--nproc-per-node", str(spec.nproc)),
            *("--max-restarts", str(spec.max_restarts)),
            *("--local-addr", "127.0.0.1", "--rdzv-id", spec.run_id),
            *("--log-dir", str(directory.torchrun_logs), "--no-python"),
            *command(KEEPER),
        ]
        log = directory.agent_log
        with _open_log(log) as output:
            process = subprocess.Popen(
                command(TORCHRUN),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**env, SPEC_VARIABLE: spec.to_json()},
                # torch cannot be imported in a directory that was removed.
                cwd=libraries.current_directory() or directory.path,
                # Jupyter interrupts the kernel's whole process group; the group asks the ranks.
                start_new_session=True,
            )
        write_start(process, {"kernel_pid": spec.kernel_pid, "argv": argv})
        return TorchrunAgent(process, log)
