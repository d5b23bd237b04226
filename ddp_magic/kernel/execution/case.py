"""Collects the evidence on a run whose ranks have ended, for `display.diagnosis.verdict`."""

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
from ddp_magic.kernel.execution.stop import Stopper
from ddp_magic.kernel.watch.collective_watch import CollectiveWatch
from ddp_magic.prelude import OWN_NAMES
from ddp_magic.wire.kernel_events import GroupEnded, Restarted
from ddp_magic.wire.states import State


class Case:
    """Explains how a run, or one attempt of its ranks, ended.

    It keeps no run: a run whose results are dropped is a copy, and would keep the other alive.

    Args:
        source: Its cell.
        around: Where its names could have come from.
        prelude: Names of the prelude that the cell reads.
        time_limit_s: Its time limit, in seconds.
    """

    def __init__(
        self,
        source: str,
        around: Surroundings,
        *,
        prelude: tuple[str, ...],
        time_limit_s: float | None,
    ) -> None:
        self._source = source
        self._around = around
        self._prelude = prelude
        self._time_limit_s = time_limit_s

    def verdict(
        self, run: RunRecord, stopper: Stopper, watch: CollectiveWatch
    ) -> tuple[State, DDPMagicError | RunInterrupted | None]:
        """Return the state of the run at its end, and the error that explains it."""
        end = run.group_end or GroupEnded()
        state, error = judge(self._evidence(run, stopper, watch, end))
        if error is not None:
            earlier = earlier_attempts(run.restarts, run.max_restarts)
            error.details = (*error.details, *earlier)
        return state, error

    def restart(
        self, run: RunRecord, event: Restarted, stopper: Stopper, watch: CollectiveWatch
    ) -> tuple[Restart, list[str]]:
        """Return why the ranks are restarted, and the lines that say so."""
        end = GroupEnded(agent_died=event.agent_died, outside=event.lost)
        evidence = self._evidence(run, stopper, watch, end)
        _, error = judge(evidence)
        restart = restart_after(error, number=event.number, elapsed_s=run.elapsed_s)
        waits = evidence.waits if TIMED_OUT.search(restart.reason) else ()  # who was waited for
        return restart, [*waits, restart_line(restart, run.max_restarts)]

    def close(self) -> None:
        """Let go of the notebook's values."""
        self._around = Surroundings()

    def _evidence(
        self, run: RunRecord, stopper: Stopper, watch: CollectiveWatch, end: GroupEnded
    ) -> Evidence:
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
