"""The agent on this machine: a child process of the kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ddp_magic.agent_spec import AgentSpec

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
# The package is found where the kernel found it, whatever lies in the working directory.
_ENTRY = (
    f"import sys; sys.path.insert(0, {_PACKAGE_PARENT!r}); from ddp_magic.agent import main; main()"
)
_LAST_WORDS_BYTES = 4000


class LocalAgent:
    """A running agent on this machine."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        """Take over a started process."""
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it at once; its ranks carry PDEATHSIG."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(timeout=5)

    def last_words(self) -> str:
        """Return the end of the agent's log."""
        return self._log.read_bytes()[-_LAST_WORDS_BYTES:].decode(errors="replace").strip()


def start(spec: AgentSpec, env: dict[str, str]) -> LocalAgent:
    """Start the agent of this machine.

    Args:
        spec: What it is to run.
        env: The whole environment of the agent and its ranks.
    """
    log = Path(spec.worker.directory) / "agent.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _ENTRY],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=env,
            # Jupyter interrupts the kernel's whole process group; the ranks are asked by us.
            start_new_session=True,
        )
    assert process.stdin is not None  # noqa: S101 -- PIPE was given
    with process.stdin as stdin:
        try:
            stdin.write(spec.to_json().encode())
        except BrokenPipeError:
            pass  # it died at once: poll tells
    return LocalAgent(process, log)
