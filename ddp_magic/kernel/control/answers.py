"""Status, stacks and stop for a terminal or a subshell, while a cell blocks the notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ddp_magic.display.status import Status, stack_lines
from ddp_magic.kernel.execution.run import Run
from ddp_magic.kernel.past_runs import MAX_RUNS, PastRuns
from ddp_magic.kernel.runs import Runs
from ddp_magic.kernel.session import Sessions
from ddp_magic.wire.forkserver_status import ForkserverStatus

_BUSY = "background runs of this notebook:"
_OVER = "background runs of this notebook that have ended:"


class Answers:
    """Answers questions, in any thread.

    Args:
        runs: The runs of this kernel.
        sessions: Its sessions.
        forkserver: Returns what its forkserver does.
        past: The runs that other kernels have left.
        busy: Returns a line for each background run of this kernel that goes on.
        over: The same, for those that have ended.
    """

    def __init__(
        self,
        runs: Runs,
        sessions: Sessions,
        forkserver: Callable[[], ForkserverStatus],
        past: PastRuns,
        busy: Callable[[], list[str]] = list,
        over: Callable[[], list[str]] = list,
    ) -> None:
        self._runs = runs
        self._sessions = sessions
        self._forkserver = forkserver
        self._past = past
        self._busy = busy
        self._over = over

    def answer(self, words: list[str]) -> str:  # noqa: PLR0911 -- one for each question
        """Return the answer to `status`, `stacks`, `stop` or `running`; the first three take a run.

        Raises:
            ValueError: There is no such run or session, or no such question.
        """
        match words:
            case ["status"]:
                # A terminal asks the hosts of background runs too, and finds ended notebooks' runs.
                return repr(self._status(_block(_BUSY, self._busy()), ()))
            case ["status", run_id]:
                return repr(Status([self._find(run_id)]))
            case ["stacks"]:
                return _stacks(self._going_on())
            case ["stacks", run_id]:
                return _stacks([self._find(run_id)])
            case ["running"]:
                return "\n".join(run.id for run in self._runs if run.ended is None)
            case ["stop"]:
                return self._stop_only()
            case ["stop", name]:
                return self._stop(name)
        raise ValueError(f"unknown question {words}")

    def status(self, background: Sequence[str] = ()) -> Status:
        """Return the status of everything.

        Args:
            background: What the hosts of background runs say.
        """
        return self._status(background, self._past.of_ended_notebooks())

    def _status(self, background: Sequence[str], ended: Sequence[str]) -> Status:
        sessions = [session.status() for session in self._sessions]
        background = [*background, *_block(_OVER, self._over()[:MAX_RUNS])]
        return Status(list(self._runs), self._forkserver(), sessions, ended, background)

    def _find(self, run_id: str) -> Run:
        if (run := self._runs.find(run_id)) is None:
            raise ValueError(f"unknown run {run_id!r}: the status without it lists the runs")
        return run

    def _going_on(self) -> list[Run]:
        if not (runs := [run for run in self._runs if run.ended is None]):
            raise ValueError("no run is going on")
        return runs

    def _stop_only(self) -> str:
        runs = self._going_on()
        if len(runs) > 1:
            ids = ", ".join(run.id for run in runs)
            raise ValueError(f"several runs are going on: give the id of one ({ids})")
        return _stop(runs[0])

    def _stop(self, name: str) -> str:
        if name in [session.name for session in self._sessions]:
            busy = [run for run in self._runs if run.ended is None and run.session == name]
            return _stop(busy[0]) if busy else self._sessions.end(name)
        if (run := self._runs.find(name)) is None:
            raise ValueError(f"unknown session or run {name!r}")
        if run.ended is not None:
            raise ValueError(f"run {run.id} has ended")
        return _stop(run)


def _block(title: str, lines: Sequence[str]) -> list[str]:
    return ["\n".join([title, *(f"  {line}" for line in lines)])] if lines else []


def _stop(run: Run) -> str:
    run.stop()
    return f"run {run.id} was asked to stop; ask again to kill its ranks"


def _stacks(runs: Iterable[Run]) -> str:
    return "\n\n".join("\n".join(stack_lines(run, run.stacks())) for run in runs)
