"""What goes wrong, and what a user must see then."""

from __future__ import annotations

import functools
from dataclasses import dataclass

STOPPED = "RunInterrupted"
ONE_OF = r"(rank {rank}|ranks [\d, -]+)"  # ranks that ended alike are named together


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    In `shows` and `says`, `{rank}` is the rank with the fault.

    Attributes:
        code: What the rank with the fault runs in one of its steps.
        timer: What it runs in a thread, at any moment.
        sends: The signal it is sent from outside.
        act: What the player does, if nothing of the above; a method of `play.Scene`.
        ends: Whether it ends the run. A program is endless then, else it takes some steps.
        early: How probably its time counts from the cell's start, not from the rank's.
        raises: The error's class; empty if the cell must succeed, None if anything may happen.
        says: What the error's message must match, with all programs.
        closes_stdout: Whether nothing can be written after it.
        of_worker: Whether it is one of a `DataLoader` worker's.
        kills: Whether a session does not survive it.
        ends_kernel: Whether the kernel does not survive it.
    """

    code: str = "pass"
    timer: str = ""
    sends: str = ""
    act: str = ""
    ends: bool = True
    early: float = 0.0
    raises: str | None = ""
    says: str = ""
    closes_stdout: bool = False
    of_worker: bool = False
    kills: bool = False
    ends_kernel: bool = False

    @property
    def in_python(self) -> bool:
        """Whether it comes in a step of the program."""
        return self.code != "pass"


_dies = functools.partial(Fault, raises="WorkerLostError", kills=True)

FAULTS = {
    # In a rank's own code.
    "raise": Fault(
        code="raise Boom('chaos')",
        raises="WorkerError",
        says=r"^rank {rank} raised Boom( at (Cell In\[\d+\], )?line \d+)?: chaos$",
    ),
    "MemoryError": Fault(
        code="bytearray(1 << 60)", raises="WorkerError", says=r"^rank {rank} raised MemoryError"
    ),
    "sys.exit(text)": Fault(
        code="sys.exit('chaos')",
        raises="WorkerLostError",
        says=r"^rank {rank} ended by sys.exit with code 1: chaos",
    ),
    "sys.exit(0)": Fault(code="sys.exit(0)", ends=False),
    "recursion": Fault(
        code="def f(): f()\nf()", raises="WorkerError", says=r"^rank {rank} raised RecursionError"
    ),
    "closed stdout": Fault(code="os.close(1); os.close(2)", ends=False, closes_stdout=True),
    "closed descriptors": Fault(
        code="os.closerange(3, 256)", raises=None, says=r"^rank {rank} ", kills=True
    ),
    "no descriptors left": Fault(
        code=(
            "import resource\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\nopen('/etc/passwd')"
        ),
        raises="WorkerError",
        says=r"^rank {rank} raised OSError.*Too many open files",
    ),
    # At any moment of a rank.
    "os._exit(3)": _dies(timer="os._exit, (3,)", says="^rank {rank} exited with code 3"),
    "os._exit(0)": Fault(timer="os._exit, (0,)", ends=False, kills=True),
    "SIGKILL": _dies(sends="SIGKILL", says="^rank {rank} was killed by SIGKILL"),
    "SIGSEGV": _dies(sends="SIGSEGV", says="^rank {rank} was killed by SIGSEGV"),
    "SIGABRT": _dies(sends="SIGABRT", says="^rank {rank} was killed by SIGABRT"),
    "SIGTERM": _dies(sends="SIGTERM", says="^rank {rank} was killed by SIGTERM"),
    "SIGSTOP, then Stop": Fault(
        act="freeze", raises=STOPPED, says=rf"{ONE_OF} did not answer", kills=True
    ),
    "DataLoader worker SIGKILLed": Fault(
        act="kill_worker",
        of_worker=True,
        raises="WorkerError",
        says=r"^rank {rank} raised RuntimeError.*DataLoader worker",
    ),
    # To the group.
    "raise about when Stop comes": Fault(
        code="raise Boom('chaos')",
        act="stop_about_then",
        raises=None,
        says=rf"{ONE_OF} (raised Boom|stopped)",
    ),
    "SIGKILL about when Stop comes": Fault(
        act="kill_about_then",
        raises=None,
        says=rf"{ONE_OF} (was killed|were killed|stopped|ended|finished|did not)",
    ),
    "Stop": Fault(act="stop", early=0.5, raises=STOPPED),
    "Stop twice": Fault(act="stop_twice", early=0.5, raises=STOPPED),
    "--time-limit": Fault(raises="TimeLimitError", says="exceeded its time limit"),
    "agent SIGKILLed": Fault(act="kill_agent", raises="LaunchError", says="^the agent died"),
    "agent SIGTERMed": Fault(
        act="end_agent", raises="LaunchError", says="^the agent was ended by SIGTERM"
    ),
    "agent SIGKILLed at its start": Fault(
        act="kill_starting_agent", early=1.0, raises=None, says="agent|could not be started"
    ),
    "agent SIGSTOPped, then Stop": Fault(act="freeze_agent", raises=STOPPED),
    "forkserver SIGKILLed": Fault(act="kill_forkserver", early=0.5, ends=False),
    "forkserver and agent SIGKILLed": Fault(
        act="kill_forkserver_and_agent", raises="LaunchError", says="^the agent died"
    ),
    # To the machine and the notebook.
    "disk full": Fault(act="fill_disk", early=0.5, ends=False),
    "run directory removed": Fault(act="remove_directory", ends=False),
    "kernel without descriptors": Fault(raises=None, act="lift_limit", early=1.0),
    "kernel SIGKILLed": Fault(act="kill_kernel", ends_kernel=True, early=0.5),
    "kernel and agent SIGKILLed": Fault(act="kill_kernel_and_agent", ends_kernel=True),
    "kernel shut down": Fault(act="shut_kernel_down", ends_kernel=True, early=0.5),
    "kernel restarted": Fault(act="restart_kernel", ends_kernel=True, early=0.5),
    # No fault: a deaf child, a slow exit handler at a good end.
    "none": Fault(ends=False),
}
