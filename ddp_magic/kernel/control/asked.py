"""Status, stacks and stop for the line magics: of the runs of this process and of hosts."""

from __future__ import annotations

from ddp_magic.display.status import Status
from ddp_magic.errors import LaunchError
from ddp_magic.kernel.background.run import BackgroundRun
from ddp_magic.kernel.background.runs import BackgroundRuns
from ddp_magic.kernel.control.answers import Answers
from ddp_magic.kernel.past_runs import PastRuns
from ddp_magic.kernel.runs import Runs
from ddp_magic.kernel.session import Sessions


class Asked:
    """Answers `%ddp_status` and `%ddp_stop`.

    Args:
        answers: What this process says of its own runs.
        runs: Its runs.
        sessions: Its sessions.
        background: The background runs that it knows.
        past: The runs that only their journals know.
    """

    def __init__(
        self,
        answers: Answers,
        runs: Runs,
        sessions: Sessions,
        background: BackgroundRuns,
        past: PastRuns,
    ) -> None:
        self._answers = answers
        self._runs = runs
        self._sessions = sessions
        self._background = background
        self._past = past

    def status(self, run_id: str | None = None) -> Status:
        """Return the status of everything, or of one run.

        Raises:
            ValueError: There is no such run.
        """
        if run_id is None:
            return self._answers.status([run.status() for run in self._shown_background()])
        if (run := self._runs.find(run_id)) is not None:
            return Status([run])
        if (found := self._background.find_any(run_id)) is None:
            raise ValueError(f"unknown run {run_id!r}: %ddp_status without it lists the runs")
        return Status([], background=[found.status()])

    def _shown_background(self) -> list[BackgroundRun]:
        runs = self._background.going_on_anywhere()
        return [run for run in runs if run.is_ours or run.background.detached]

    def stacks(self, run_id: str | None = None) -> str:
        """Return the stacks of the ranks of all runs that go on, or of one.

        Raises:
            ValueError: There is no such run.
        """
        if run_id is None:
            background = [run.stacks() for run in self._shown_background()]
            own = any(run.ended is None for run in self._runs)
            here = [self._answers.answer(["stacks"])] if own or not background else []
            return "\n\n".join([*here, *background])
        if self._runs.find(run_id) is None and (found := self._background.find_any(run_id)):
            return found.stacks()
        return self._answers.answer(["stacks", run_id])

    def stoppable(self) -> list[str]:
        """Return what `%ddp_stop` can end: names of sessions, ids of background runs."""
        return [
            *(session.name for session in self._sessions),
            *(run.id for run in self._background.going_on_anywhere()),
        ]

    def stop(self, name: str | None) -> str:
        """End a session or a run; return a message for the user.

        Args:
            name: Name of a session, or the end of a run's id; None for the only background run.

        Raises:
            ValueError: There is none, or there are several.
        """
        sessions = [session.name for session in self._sessions]
        going_on = self._background.going_on()
        own = [*sessions, *(run.id for run in going_on)]
        others = [each for each in self.stoppable() if each not in own]
        running = [f"running: {', '.join(own)}"] if own else []
        running += [f"of other notebooks: {', '.join(others)}"] if others else []
        there = "; ".join(running) or "nothing is running"
        if name is None:
            if len(going_on) == 1 and not sessions:
                return going_on[0].stop()
            if not running:
                raise ValueError("there is no session and no background run")
            which = "give its name or id" + (", or --all" if own else "")
            raise ValueError(f"missing session or run: {which} ({there})")
        if name not in sessions and not self._runs.find(name):
            self._past.wait_for_start(name)
            if (run := self._background.find_any(name)) is not None:
                return run.stop()
        try:
            return self._answers.answer(["stop", name])
        except LaunchError as error:
            raise ValueError(str(error)) from error
        except ValueError as error:
            raise ValueError(f"{error} ({there})") from error

    def stop_all(self) -> list[str]:
        """End all sessions and background runs of this notebook; return messages for the user."""
        ended = [*self._sessions.end_all(), *(run.stop() for run in self._background.going_on())]
        if ended:
            return ended
        others = f" (of other notebooks: {', '.join(left)})" if (left := self.stoppable()) else ""
        return [f"this notebook has no session and no background run{others}"]
