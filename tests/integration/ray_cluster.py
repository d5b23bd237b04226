"""A real Ray of two nodes for the tests, on one machine: each node is a network namespace.

The nodes are `n1`, the head, and `n2`. A kernel of the tests runs on `n1`: `prefix` starts
it there. Nothing listens outside of the namespaces. Everything is ended by its own pid.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.integration import network
from tests.limits import HANG_S

NODES = ("n1", "n2")
CPUS = 4  # of each node, as Ray counts them
_PORT = 6379
_SMALL = ["--include-dashboard=false", "--no-monitor"]
_RAY = str(Path(sys.executable).parent / "ray")


def missing() -> str:
    """Return why there can be no cluster here; empty if there can."""
    if importlib.util.find_spec("ray") is None:
        return "not installed: ray"
    return network.missing()


class RayCluster:
    """A running cluster.

    Attributes:
        prefix: Words before the command of a process on `n1`.
        env: Variables for it.
        temporary: Where its actors put temporary files.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets have long names
        self._files = self.directory / "files"
        self.temporary = self.directory / "t"
        for path in (self._files, self.temporary):
            path.mkdir()
        self._network = network.Network("r", NODES, self.directory)
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self._network.start()
        address = f"{self._network.address('n1')}:{_PORT}"
        self.prefix = tuple(self._inside("n1", []))
        self.env = {
            "RAY_ADDRESS": address,
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(self.temporary),  # of a kernel, which its actors have from there
        }
        # One after the other: a node that is not up after 30 s gives up.
        self._spawn("n1", ["--head", f"--port={_PORT}", *_SMALL])
        self._spawn("n2", [f"--address={address}"])

    def _inside(self, host: str, argv: Sequence[str]) -> list[str]:
        """Return the command that runs another one on a host, with Ray's files of that host."""
        there = self.directory / host
        there.mkdir(exist_ok=True)
        mount = ["sh", "-c", 'mount --bind "$1" "$2"; shift 2; exec "$@"', "sh"]
        return self._network.inside(host, [*mount, str(there), str(self._files), *argv])

    def _spawn(self, host: str, options: Sequence[str]) -> None:
        argv = [_RAY, "start", "--block", f"--node-ip-address={self._network.address(host)}"]
        argv += [f"--temp-dir={self._files}", "--include-log-monitor=false"]
        argv += [f"--num-cpus={CPUS}", "--object-store-memory=200000000", *options]
        path = self.directory / f"{host}.out"
        with path.open("wb") as output:
            self._processes.append(
                subprocess.Popen(
                    self._inside(host, argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
                )
            )
        deadline = time.monotonic() + HANG_S
        while "--block" not in path.read_text():  # its last words before it waits
            if self._processes[-1].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Ray did not start: {path.read_text()[-2000:]}")
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """Return what runs on it, of whomever."""
        found = []
        for process in self._processes:
            found += psutil.Process(process.pid).children(recursive=True)
        return found

    def stop(self) -> None:
        """End every process of it, and remove the network."""
        self._network.stop()
        for process in self._processes:
            process.wait(timeout=HANG_S)
        shutil.rmtree(self.directory, ignore_errors=True)
