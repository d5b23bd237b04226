"""What becomes of a session after each of its cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.rank import Rank
from ddp_magic.kernel.execution.renewal import prepare_next_cell
from ddp_magic.wire.kernel_events import Doing, Note, RunEvent
from tests.unit.fakes import Batch, FakeGroup, error, exited, finished, hello, idle, ready, text


def _ranks(*more: RunEvent) -> list[Rank]:
    ranks = [Rank(rank=0), Rank(rank=1)]
    for rank in ranks:
        for event in (hello(rank.rank), ready(rank.rank), finished(rank.rank), idle(rank.rank)):
            rank.take(event)
    for event in more:
        ranks[event.rank].take(event)  # type: ignore[union-attr]
    return ranks


def _prepare(group: FakeGroup, ranks: list[Rank], **how: Any) -> list[RunEvent]:
    settings = {"name": "lab", "succeeded": True, "wants_process_group": True, **how}
    settings.setdefault("stopped", lambda: False)
    batches = prepare_next_cell(group, ranks, **settings)  # type: ignore[arg-type]
    return [event for batch in batches for event in batch]


def _renewal(*batches: Batch) -> dict[str, list[Batch]]:
    return {"renew_process_group": list(batches)}


def test_a_cell_that_succeeded_leaves_everything_as_it_is(tmp_path: Path) -> None:
    group = FakeGroup(tmp_path, kept=True)
    assert _prepare(group, _ranks()) == []
    assert group.commands == []


def test_without_a_process_group_there_is_nothing_to_renew(tmp_path: Path) -> None:
    """`--no-init`: a failed cell leaves the session as it is."""
    group = FakeGroup(tmp_path, kept=True)
    assert _prepare(group, _ranks(), succeeded=False, wants_process_group=False) == []
    assert group.commands == []


def test_after_a_failed_cell_the_process_group_is_new(tmp_path: Path) -> None:
    """The user is told, since DDP objects hold the old one."""
    group = FakeGroup(tmp_path, kept=True, on=_renewal([ready(0)], [], [ready(1)]))
    doing, note = _prepare(group, _ranks(), succeeded=False)
    assert doing == Doing(text="re-creating the process group")
    assert isinstance(note, Note)
    assert note.text == (
        "session lab: variables are kept; the process group was re-created because ranks may have "
        "been out of step: create DDP objects and groups again"
    )
    assert group.names == ["renew_process_group"]


def test_a_group_that_the_cell_destroyed_is_renewed(tmp_path: Path) -> None:
    """On one rank is enough."""
    group = FakeGroup(tmp_path, kept=True, on=_renewal([ready(0), ready(1)]))
    note = _prepare(group, _ranks(idle(1, group=False)))[-1]
    assert isinstance(note, Note)
    assert "re-created because the cell destroyed it" in note.text


@pytest.mark.parametrize("wanted", [True, False])
def test_a_rank_whose_cuda_context_is_lost_is_told(tmp_path: Path, wanted: bool) -> None:
    """With or without a process group; the session is kept for what lies on the CPU."""
    group = FakeGroup(tmp_path, kept=True, on=_renewal([ready(0), ready(1)]))
    ranks = _ranks(idle(1, cuda_error="CUDA error: device-side assert triggered"))
    events = _prepare(group, ranks, succeeded=False, wants_process_group=wanted)
    assert events[0] == Note(
        text="session lab: rank 1 can no longer use its GPU (CUDA error: device-side assert "
        "triggered), and its values there are lost. Pull what you need from the CPU, then end the "
        "session with %ddp_stop lab and run its cells again"
    )
    assert not group.ended


def test_what_ranks_write_meanwhile_is_shown(tmp_path: Path) -> None:
    """But not their readiness, which is no news of a cell."""
    group = FakeGroup(tmp_path, kept=True, on=_renewal([text(0, "late\n"), ready(0), ready(1)]))
    _, shown, _ = _prepare(group, _ranks(), succeeded=False)
    assert shown == text(0, "late\n")


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        ([error(1, "no route", ename="RuntimeError")], "rank 1 raised RuntimeError: no route"),
        ([ready(0), exited(1, -9)], "rank 1 ended"),
    ],
)
def test_a_renewal_that_fails_ends_the_session(tmp_path: Path, batch: Batch, why: str) -> None:
    """Its ranks would never be in step again."""
    group = FakeGroup(tmp_path, kept=True, on=_renewal(batch))
    note = _prepare(group, _ranks(), succeeded=False)[-1]
    assert note == Note(
        text=f"session lab ended: its process group could not be re-created ({why})"
    )
    assert group.names[-1] == "close"


def test_stop_ends_a_renewal_and_the_session(tmp_path: Path) -> None:
    group = FakeGroup(tmp_path, kept=True)
    note = _prepare(group, _ranks(), succeeded=False, stopped=lambda: True)[-1]
    assert isinstance(note, Note)
    assert "(Stop was pressed)" in note.text
    assert group.ended


def test_a_rank_that_does_not_answer_ends_the_session(tmp_path: Path) -> None:
    """After a while: what was asked of a GPU before is done first."""
    group = FakeGroup(tmp_path, kept=True, on=_renewal([ready(0)]))
    note = _prepare(group, _ranks(), succeeded=False, limit_s=0.0)[-1]
    assert isinstance(note, Note)
    assert "(not all ranks answered)" in note.text
    assert group.ended


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_session_that_lost_a_rank_ends(tmp_path: Path, succeeded: bool) -> None:
    """Nobody waits for a new process group."""
    group = FakeGroup(tmp_path, kept=True)
    events = _prepare(group, _ranks(exited(1, 0)), succeeded=succeeded)
    assert events == [Note(text="session lab ended because its ranks ended")]
    assert group.names == ["close"]


def test_a_session_whose_group_has_ended_is_closed(tmp_path: Path) -> None:
    """Its agent died: no rank's end was reported."""
    group = FakeGroup(tmp_path, kept=True)
    group.ended = True
    assert _prepare(group, _ranks()) == [Note(text="session lab ended because its ranks ended")]
