"""The files of one run, or of one session: every file name stands here and nowhere else."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

SOCKET = "socket"
_STORE = "store"
_CHILDREN = "children"
_PROFILE = "profile"
_VALUES = "values"


@dataclass(frozen=True)
class RunDirectory:
    """Names the files of a run. Nothing is created by naming it.

    Attributes:
        path: The directory, of mode 0700.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def id(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def cell(self) -> Path:
        """The cell's text."""
        return self.path / "cell.py"

    @property
    def socket(self) -> Path:
        """The Unix socket on which the kernel listens."""
        return self.path / SOCKET

    @property
    def agent_log(self) -> Path:
        """What the agent, or torchrun, wrote to its stdout and stderr."""
        return self.path / "agent.log"

    def log_agent(self, data: bytes) -> None:
        """Append to `agent_log`. A full disk costs the log, not the run."""
        if data:
            with contextlib.suppress(OSError):
                append(self.agent_log, data)

    @property
    def journal(self) -> Path:
        """What a person saw of the run."""
        return self.path / "journal.jsonl"

    @property
    def table(self) -> Path:
        """The table of a background run, as it is shown now."""
        return self.path / "table.json"

    @property
    def host_log(self) -> Path:
        """What the host of a background run wrote to its stdout and stderr."""
        return self.path / "host.log"

    @property
    def torchrun_logs(self) -> Path:
        """Where torchrun keeps logs of its own."""
        return self.path / "torchrun"

    def rank_log(self, rank: int) -> Path:
        """All that a rank wrote to stdout and stderr."""
        return self.path / f"rank{rank}.log"

    def rank_logs(self) -> dict[int, Path]:
        """Return the logs that exist, by rank."""
        found = {}
        for path in self.path.glob("rank*.log"):
            if (number := path.stem.removeprefix("rank")).isdigit():
                found[int(number)] = path
        return dict(sorted(found.items()))

    def stacks(self, rank: int) -> Path:
        """The stacks that a rank dumped (faulthandler)."""
        return self.path / f"rank{rank}.stacks"

    def calls(self, rank: int) -> Path:
        """The collectives that a rank has called in a cell that is checked."""
        return self.path / f"rank{rank}.calls"

    def profile(self, rank: int) -> Path:
        """What a rank has measured of its cell."""
        return self.path / f"{_PROFILE}{rank}.jsonl"

    def figure(self, display: str, suffix: str) -> Path:
        """A figure, saved for a terminal.

        Args:
            display: Name of the display: that of the run, the rank, its number.
            suffix: `.png` and so on.
        """
        name = re.sub(r"[^\w.-]", "_", display.removeprefix(f"{self.id}-"))
        return self.path / f"figure-{name}{suffix}"

    def children(self, rank: int) -> Path:
        """What a rank leaves for its `multiprocessing` children."""
        return self.path / f"{_CHILDREN}{rank}.json"

    def store(self, attempt: str) -> Path:
        """The store through which the ranks find each other (`torch.distributed.FileStore`).

        Args:
            attempt: Tells apart the stores of a run that is restarted.
        """
        return self.path / f"{_STORE}{attempt}"

    def torch_error(self, local_rank: int) -> Path:
        """Where torch's agent expects a rank's error record."""
        return self.path / f"error{local_rank}.json"

    def kept_results(self, rank: int) -> Path:
        """What a rank of a background run said of the values that it sent."""
        return self.path / f"results{rank}.json"

    def kept_values(self, rank: int) -> Path:
        """The values that a rank of a background run sent, as `wire.memory` arranges them."""
        return self.path / f"{_VALUES}{rank}"

    @property
    def has_values(self) -> bool:
        """Whether values lie here that a notebook may still want."""
        return any(self.path.glob(f"{_VALUES}*"))

    def unread_results(self, rank: int) -> Path:
        """Pulled values that the kernel could not read."""
        return self.path / f"results{rank}.pkl"

    def saved_value(self, name: str, rank: int, suffix: str) -> Path:
        """A value that could not be pulled, saved by its rank.

        Args:
            name: Its name in the cell, dotted or not.
            rank: Whose value it is.
            suffix: `.pt` for `torch.save`, `.txt` for its text.
        """
        return self.path / f"{name}.rank{rank}{suffix}"

    def make_again(self) -> None:
        """Make the directory if a cleaner of temporary files has removed it.

        Raises:
            OSError: It cannot be made.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def tidy(self) -> None:
        """Remove what nobody will read once the run has ended: stores, empty files."""
        try:
            paths = list(self.path.iterdir())
        except OSError:  # a cleaner of temporary files was there before
            return
        ours = (_STORE, _CHILDREN)
        for path in paths:
            try:
                if path.is_file() and (path.name.startswith(ours) or path.stat().st_size == 0):
                    path.unlink(missing_ok=True)
            except OSError:  # a disk that has become read-only: it stays
                continue


def append(path: Path, data: bytes) -> int:
    """Append to a log, and make it again if it has been removed.

    Returns:
        Size of the log, in bytes.

    Raises:
        OSError: It cannot be written: the disk is full, say.
    """
    try:
        log = path.open("ab", buffering=0)
    except FileNotFoundError:
        RunDirectory(path.parent).make_again()
        log = path.open("ab", buffering=0)
    with log:
        view = memoryview(data)
        while view:
            view = view[log.write(view) :]
        return log.tell()
