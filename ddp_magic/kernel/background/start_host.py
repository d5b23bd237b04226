"""How a kernel starts the host of a background run, and what it hands over.

A host (`kernel.background.host`) does for one run what a kernel does, in a process of its own.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from ddp_magic.display.diagnosis.name_hints import Surroundings
from ddp_magic.display.record import Background
from ddp_magic.engines.local import LocalEngine
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.run import Run
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.values.capture import Capture, Value
from ddp_magic.system.entry_points import HOST, command
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.commands import Captured
from ddp_magic.wire.memory import Segment


@dataclass(frozen=True, kw_only=True)
class HostStart:
    """What a kernel tells a host. It goes through a pipe of their own, as a pickle.

    Attributes:
        directory: Of the run.
        cell: What to run.
        options: How.
        background: How the host serves it.
        cold: Whether torchrun starts the ranks.
        sys_path: The kernel's module search path.
        hang_s: A shorter wait of ranks for others is not explained, in seconds.
        notebook: The names that the notebook defines, for hints in errors.
        elsewhere: For names of the cell, the cell that last assigned it in other ranks, and the
            session that still has it.
        values: What is sent to the ranks: names, types, sizes.
        captured: The command for that; None if nothing is sent.
        segments: Descriptor and sizes of shared memory, by number; the host inherits them.
        prelude: Names of the prelude that the cell reads.
        notes: Messages to show.
        forkserver: The connection to a forkserver that the notebook's forks for it; None if it
            needs none.
    """

    directory: Path
    cell: Cell
    options: Options
    background: Background
    cold: bool
    sys_path: list[str]
    hang_s: float
    notebook: frozenset[str]
    elsewhere: dict[str, tuple[str, str]]
    values: list[Value]
    captured: Captured | None
    segments: dict[int, tuple[int, tuple[int, ...]]]
    prelude: set[str]
    notes: list[str]
    forkserver: int | None = None

    @classmethod
    def of(  # noqa: PLR0913 -- as those of `Run`
        cls,
        cell: Cell,
        options: Options,
        capture: Capture,
        around: Surroundings,
        *,
        directory: RunDirectory,
        background: Background,
        cold: bool,
        hang_s: float,
    ) -> HostStart:
        """Describe a run to its host; for the arguments see `Run`."""
        return cls(
            directory=directory.path,
            cell=cell,
            options=options,
            background=background,
            cold=cold,
            sys_path=list(sys.path),
            hang_s=hang_s,
            notebook=frozenset(around.notebook),
            elsewhere={n: found for n in cell.names.reads if any(found := around.elsewhere(n))},
            values=capture.values,
            captured=capture.command,
            segments={n: (s.fd, s.sizes) for n, s in capture.segments.items()},
            prelude=capture.prelude,
            notes=capture.notes,
        )

    def make_run(self) -> Run:
        """Return the run, in the host."""
        capture = Capture(
            values=self.values,
            command=self.captured,
            segments={number: Segment(*given) for number, given in self.segments.items()},
            prelude=self.prelude,
            notes=self.notes,
        )
        return Run(
            self.cell,
            self.options,
            capture=capture,
            around=Surroundings(
                dict.fromkeys(self.notebook), lambda name: self.elsewhere.get(name, ("", ""))
            ),
            hang_s=self.hang_s,
            directory=RunDirectory(self.directory),
            background=self.background,
        )


def start_host(start: HostStart, forkserver: LocalEngine) -> subprocess.Popen[bytes]:
    """Start a host; returns before it is up.

    Its environment and its working directory are those of the kernel now; the locks on GPUs are its
    own from now on.

    Args:
        start: What it is to do.
        forkserver: The notebook's, which forks one for it.

    Raises:
        OSError: There is no memory for it, or this process can open no more files.
    """
    locks = start.options.gpu_locks
    ours, theirs = socket.socketpair()
    is_local = start.options.engine == "local" and not start.cold
    start = replace(start, forkserver=theirs.fileno() if is_local else None)
    with ours, theirs, RunDirectory(start.directory).host_log.open("ab") as log:
        process = subprocess.Popen(
            command(HOST),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[
                theirs.fileno(),
                *(fd for fd, _ in start.segments.values()),
                *locks.descriptors.values(),
            ],
            start_new_session=True,  # neither Stop nor the end of a terminal reaches it
        )
        if is_local:
            forkserver.lend(ours, process.pid, start.options.environment(os.environ))
    assert process.stdin is not None  # noqa: S101 -- PIPE was given
    try:
        with process.stdin as stdin:
            stdin.write(pickle.dumps(start))
    except BrokenPipeError:
        pass  # it died at once, which its exit shows
    locks.release()  # the host has them too
    return process
