"""Runs of this and of other kernels, also of those that have ended, by what they left on disk."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from ddp_magic.display.journal import past_run
from ddp_magic.display.journal.past_run import PastRun
from ddp_magic.display.text.rank_lines import RankLines
from ddp_magic.kernel.control import server as control
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.system.run_places import run_directories, run_roots

DAY_S = 24 * 3600
START_S = 60.0  # for the host of a background run to start
HOSTS_S = 10.0  # for all of them, of which one may have died
LOOK_S = 5.0  # for a host to say what it serves: one that is stopped never does
POLL_S = 0.1
MAX_RUNS = 20  # of ended kernels that are listed
_ID = re.compile(r"(\d{4}-\d{6})-\d+-(\d+)")


class PastRuns:
    """Finds runs by what they left on disk.

    Args:
        own: Returns the ids of this kernel's runs, which are chosen before those of others.
        roots: Where runs lie; None for all places of this user.
    """

    def __init__(
        self, own: Callable[[], Collection[str]], roots: Sequence[Path] | None = None
    ) -> None:
        self._own = own
        self._roots = roots

    def find(self, run_id: str | None) -> PastRun:
        """Return the newest run whose id ends so, and whose output was kept.

        Args:
            run_id: The end of its id; None or empty for the newest run, of this kernel if that has
                had runs. One that has just been made is waited for.

        Raises:
            ValueError: There is none.
        """
        self.wait_for_start(run_id)
        own = self._own()
        for directory in self._own_first(run_id):
            if own and not run_id and directory.id not in own:
                raise ValueError("no run of this notebook is left: give the id of another one")
            if (run := past_run.read(directory.journal)) is not None:
                return run
        raise ValueError(f"no {_named(run_id)} is left: runs are kept for 7 days")

    def wait_for_start(self, run_id: str | None, limit_s: float = START_S) -> None:
        """Wait until a run of this id that has just been made can be asked and found.

        The host of a background run is some seconds behind the line that announces the run.

        Args:
            run_id: As in `find`, but without it no other kernel's run is waited for.
            limit_s: How long to wait, in seconds.
        """
        own = self._own()
        made = [each for each in self._own_first(run_id) if run_id or each.id in own]
        _wait_while_starting(made[:1], limit_s)

    def wait_for_hosts(self, limit_s: float = HOSTS_S) -> None:
        """Wait until the background runs that have just been made can be found."""
        made = [each for each in self._newest_first() if each.host_log.exists()]
        _wait_while_starting(made, limit_s)

    def logs(self, run_id: str | None, rank: int | None, lines: int | None) -> Iterator[str]:
        """Yield what the ranks of a run wrote, a line at a time, as a notebook shows it.

        Args:
            run_id: As in `find`.
            rank: One rank; None for all, each line with its rank.
            lines: Only the last lines of each rank; None for all.

        Raises:
            ValueError: There is no such run, or no such rank.
        """
        directory = self.with_logs(run_id)
        logs = directory.rank_logs()
        if rank is not None and rank not in logs:
            there = ", ".join(map(str, logs)) or "none"
            raise ValueError(
                f"rank {rank} of run {directory.id} wrote nothing; ranks that did: {there}"
            )
        for number, path in logs.items():
            if rank in (None, number):
                text, shown = path.read_bytes().decode(errors="replace"), RankLines()
                found = shown.feed(text) + shown.end()
                for line in found if lines is None else found[max(0, len(found) - lines) :]:
                    yield f"[rank {number}] {line}" if rank is None else line

    def of_ended_notebooks(self) -> list[str]:
        """Return a line for each of the newest runs of the last day whose notebooks have ended."""
        found: list[str] = []
        own = self._own()
        for directory in self._newest_first():
            run = past_run.read(directory.journal)
            if run is None or run.id in own or run.notebook_lives:
                continue
            if len(found) == MAX_RUNS or time.time() - run.started > DAY_S:
                break
            found.append(run.title)
        return found

    def of_living_hosts(self) -> list[PastRun]:
        """Return the background runs that go on, newest first."""
        found = []
        for path in control.hosts(self._places()):
            try:
                ids = control.ask(path, ["running"], LOOK_S)[1].split()
            except ConnectionError:
                path.unlink(missing_ok=True)  # it was killed
                continue
            except TimeoutError:
                continue
            runs = [past_run.read(RunDirectory(path.parent / run_id).journal) for run_id in ids]
            found += [run for run in runs if run is not None]
        return sorted(found, key=lambda run: -run.started)

    def of_hosts(self) -> Iterator[PastRun]:
        """Yield the background runs, newest first, whether they go on or not."""
        for directory in self._newest_first():
            run = past_run.read(directory.journal)
            if run is not None and run.background is not None:
                yield run

    def with_logs(self, run_id: str | None) -> RunDirectory:
        """Return the directory of a run's logs: a session's runs share one.

        Args:
            run_id: As in `find`; without it, the newest run whose ranks wrote something, of this
                kernel if that has had runs.

        Raises:
            ValueError: There is none.
        """
        try:
            directory = RunDirectory(Path(self.find(run_id).logs))
        except ValueError:
            pass
        else:
            if run_id or directory.rank_logs():
                return directory
        own = self._own()
        for directory in self._own_first(run_id):
            if directory.rank_logs() and (run_id or not own or directory.id in own):
                return directory
        if own and not run_id:
            raise ValueError("the runs of this notebook wrote nothing: give the id of another one")
        raise ValueError(f"no {_named(run_id)} with logs is left: they are kept for 7 days")

    def title_of_logs(self) -> str:
        """Return which run `logs` without an id is about.

        Raises:
            ValueError: No run has logs.
        """
        directory = self.with_logs(None)
        run = past_run.read(directory.journal)
        return f"run {directory.id}" if run is None else run.title

    def _own_first(self, run_id: str | None) -> list[RunDirectory]:
        own = self._own()
        named = [directory for directory in self._newest_first() if _is(directory, run_id)]
        return sorted(named, key=lambda directory: directory.id not in own)

    def _places(self) -> Sequence[Path]:
        return run_roots() if self._roots is None else self._roots

    def _newest_first(self) -> list[RunDirectory]:
        now = time.strftime("%m%d-%H%M%S")

        def began(directory: RunDirectory) -> tuple[bool, str, int]:
            match = _ID.fullmatch(directory.id)
            stamp, number = (match[1], int(match[2])) if match else ("", 0)
            return stamp <= now, stamp, number  # a later day of the year is one of last year

        return sorted(run_directories(self._places()), key=began, reverse=True)


def _is(directory: RunDirectory, run_id: str | None) -> bool:
    return directory.id.endswith(run_id or "")


def _named(run_id: str | None) -> str:
    return f"run {run_id!r}" if run_id else "run"


def _wait_while_starting(made: Sequence[RunDirectory], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while any(map(_is_starting, made)) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _is_starting(directory: RunDirectory) -> bool:
    try:
        made = directory.path.stat().st_mtime
    except OSError:
        return False
    begun = directory.journal.exists() or directory.rank_logs()
    return time.time() - made < START_S and not begun
