"""What Ray runs on each node: the far relay, and its streams as methods of an actor.

It travels by value: Ray's own processes need not find ddp_magic.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ddp_magic.wire.relay_frames import PIECE_BYTES


class Node:
    """An actor: the streams of the relay on one node."""

    def name(self) -> str:
        """Return the name of this node."""
        return os.uname().nodename

    def start(self, argv: Sequence[str], cwd: str, env: dict[str, str], own: Sequence[str]) -> None:
        """Start the relay.

        Args:
            argv: Its command.
            cwd: Its working directory, if there is such a one here.
            env: Its environment.
            own: Variables that Ray has set for this actor.
        """
        import ray

        env |= {name: os.environ[name] for name in own if name in os.environ}
        env["DDP_MAGIC_RAY_ADDRESS"] = ray.util.get_node_ip_address()
        env["DDP_MAGIC_RAY_JOB"] = ray.get_runtime_context().get_job_id()
        self.run(argv, cwd if Path(cwd).is_dir() else "/", env)

    def run(self, argv: Sequence[str], cwd: str, env: dict[str, str]) -> None:
        """Run a command."""
        self._rest = b""
        self._relay = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )

    def read(self) -> bytes | int:
        """Wait for what it writes, and return that, in whole lines; at its end, its exit code."""
        assert self._relay.stdout is not None  # noqa: S101 -- PIPE was given
        while data := os.read(self._relay.stdout.fileno(), PIECE_BYTES):
            lines, end, self._rest = (self._rest + data).rpartition(b"\n")
            if end:
                return lines + end
        return self._relay.wait()

    def write(self, data: bytes) -> None:
        """Write to its stdin."""
        assert self._relay.stdin is not None  # noqa: S101 -- PIPE was given
        with contextlib.suppress(OSError, ValueError):  # it has ended, or was told to
            self._relay.stdin.write(data)
            self._relay.stdin.flush()

    def end(self) -> None:
        """End its stdin, and so it, its agent and its ranks."""
        assert self._relay.stdin is not None  # noqa: S101 -- PIPE was given
        with contextlib.suppress(OSError):
            self._relay.stdin.close()
