"""What is known of a run when its ranks have ended, put together for the verdict on it."""

from __future__ import annotations

from ddp_magic.display.diagnosis.name_hints import Surroundings
from ddp_magic.display.diagnosis.restarts import (
    TIMED_OUT,
    Restart,
    earlier_attempts,
    restart_after,
    restart_line,
)
from ddp_magic.display.diagnosis.verdict import Evidence, judge
from ddp_magic.display.record import RunRecord
from ddp_magic.errors import DDPMagicError, RunInterrupted
from ddp_magic.kernel.stop import Stopper
from ddp_magic.kernel.watch.collective_watch import CollectiveWatch
from ddp_magic.prelude import OWN_NAMES
from ddp_magic.wire.kernel_events import GroupEnded, Restarted
from ddp_magic.wire.states import State


class Case:
    """Explains how a run, or one attempt of its ranks, ended.

    Args:
        run: What is known of the run.
        source: Its cell.
        around: Where its names could have come from.
        prelude: Names of the prelude that the cell reads.
        time_limit_s: Its time limit, in seconds.
    """

    def __init__(
        self,
        run: RunRecord,
        source: str,
        around: Surroundings,
        *,
        prelude: tuple[str, ...],
        time_limit_s: float | None,
    ) -> None:
        self._run = run
        self._source = source
        self._around = around
        self._prelude = prelude
        self._time_limit_s = time_limit_s

    def verdict(
        self, stopper: Stopper, watch: CollectiveWatch
    ) -> tuple[State, DDPMagicError | RunInterrupted | None]:
        """Return the state of the run at its end, and the error that explains it."""
        end = self._run.group_end or GroupEnded()
        state, error = judge(self._evidence(stopper, watch, end))
        if error is not None:
            earlier = earlier_attempts(self._run.restarts, self._run.max_restarts)
            error.details = (*error.details, *earlier)
        return state, error

    def restart(
        self, event: Restarted, stopper: Stopper, watch: CollectiveWatch
    ) -> tuple[Restart, list[str]]:
        """Return why the ranks are restarted, and the lines that say so."""
        evidence = self._evidence(stopper, watch, GroupEnded(agent_died=event.agent_died))
        _, error = judge(evidence)
        restart = restart_after(error, number=event.number, elapsed_s=self._run.elapsed_s)
        waits = evidence.waits if TIMED_OUT.search(restart.reason) else ()  # who was waited for
        return restart, [*waits, restart_line(restart, self._run.max_restarts)]

    def close(self) -> None:
        """Let go of the notebook's values."""
        self._around = Surroundings()

    def _evidence(self, stopper: Stopper, watch: CollectiveWatch, end: GroupEnded) -> Evidence:
        run = self._run
        return Evidence(
            ranks=run.ranks,
            stop=stopper.reason,
            stopped=stopper.began,
            time_limit_s=self._time_limit_s,
            restarts_left=len(run.restarts) < run.max_restarts,
            group=end,
            logs=run.log_directory,
            source=self._source,
            around=self._around,
            waits=watch.reasons(run.ranks),
            mismatch=watch.mismatch,
            mismatch_lines=watch.mismatch_lines,
            prelude=OWN_NAMES & set(self._prelude),
            cell_labels=run.cell_labels,
        )
