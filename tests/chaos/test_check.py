"""Faults come from their seed, and broken promises are found. Without processes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.chaos.check import violations
from tests.chaos.draw import Draw, draw, fits
from tests.chaos.faults import FAULTS
from tests.chaos.play import Seen
from tests.chaos.programs import PROGRAMS, program_text
from tests.integration.kernel import Result

RAISE = Draw(
    seed=1, number=0, fault="raise", program="compute loop", kept="one-shot", ranks=2, rank=1,
    early=False, when_s=0.5, gap_s=0.0, steps=10, spare=0, neighbor=False,
)  # fmt: skip
LINE = 1 + RAISE.cell[: RAISE.cell.index("raise Boom")].count("\n")


def _cell(status: str = "ok", text: str = "", *, error: str = "", ename: str = "") -> Result:
    outputs: list[tuple[str, dict[str, Any]]] = []
    if error:
        content = {"ename": ename or "WorkerError", "evalue": error, "traceback": [error]}
        outputs = [("error", content)]
    return Result(status=status, shown=text, outputs=outputs)


NEXT = _cell(text="[rank 0] sum 2.0 None\n[rank 1] sum 2.0 None\n")
SEEN = Seen(
    ended=True,
    result=_cell("error", error=f"rank 1 raised Boom at line {LINE}: chaos"),
    next=NEXT,
)


def _kinds(draw: Draw, seen: Seen) -> list[str]:
    return [violation.kind for violation in violations(draw, seen)]


def test_a_seed_and_a_number_give_the_same_fault() -> None:
    assert draw(3, 40) == draw(3, 40)
    assert {str(draw(seed, 0)) for seed in range(20)} != {str(draw(3, 0))}


def test_a_series_has_each_kind_of_fault_once() -> None:
    for start in (0, len(FAULTS)):
        kinds = [draw(7, start + n).fault for n in range(len(FAULTS))]
        assert sorted(kinds) == sorted(FAULTS)


def test_drawn_faults_can_come() -> None:
    """In ranks that there are, in a program that has steps where they need one."""
    for number in range(500):
        one = draw(5, number)
        assert one.rank < one.ranks
        assert fits(one.cause, one.what)
        assert one.kept != "session" or one.what.in_session


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_python(name: str) -> None:
    text = program_text(name, rank=0, when_s=1.0, steps=5, fault="x = 1\ny = 2", before="pass")
    compile(text, name, "exec")


def test_a_fault_as_promised_breaks_nothing() -> None:
    assert _kinds(RAISE, SEEN) == []


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("left", {"left": ["123: sleep 300"]}),
        ("hung", {"ended": False}),
        ("culprit", {"result": _cell("error", error=f"rank 0 raised Boom at line {LINE}: chaos")}),
        ("culprit", {"result": _cell("error", error="rank 1 raised Boom at line 2: chaos")}),
        ("culprit", {"result": _cell("ok")}),
        ("next", {"next": _cell("error", error="no")}),
        ("next", {"next": _cell(text="[rank 0] sum 1.0 None\n")}),
        ("other", {"stray": ["store0"]}),
        ("other", {"beside": _cell("error", error="no")}),
        ("frames", {"next": dataclasses.replace(NEXT, shown=NEXT.shown + "ddp_magic/kernel/x.py")}),
    ],
)
def test_a_broken_promise_is_found(kind: str, change: dict[str, Any]) -> None:
    assert _kinds(RAISE, dataclasses.replace(SEEN, **change)) == [kind]


def test_a_session_that_is_lost_in_silence_is_found() -> None:
    """Ranks that are new have not the variable of the session's first cell."""
    session = dataclasses.replace(RAISE, kept="session")
    seen = dataclasses.replace(
        SEEN, result=_cell("error", error=f"rank 1 raised Boom at line {LINE}: chaos")
    )
    assert _kinds(session, seen) == ["next", "next"]
    kept = dataclasses.replace(seen, next=_cell(text="sum 2.0 0\nsum 2.0 1\n"))
    assert _kinds(session, kept) == []


def test_a_rank_that_left_a_collective_is_named() -> None:
    """Not only the peer that complains."""
    left = dataclasses.replace(RAISE, fault="os._exit(0)", program="all_reduce loop", rank=0)
    fate = "\nrank 0: left early: os._exit(0) in the cell"
    for error in (
        f"rank 1 raised RuntimeError at line 20: Connection closed by peer{fate}",
        f"rank 1 left early (os._exit(0) in the cell), and rank 0 lost its connection{fate}",
    ):
        seen = dataclasses.replace(SEEN, result=_cell("error", error=error))
        assert _kinds(left, seen) == ["culprit"]
    error = "rank 0 left early (os._exit(0) in the cell), and rank 1 lost its connection at line 20"
    named = _cell("error", error=error + fate)
    assert _kinds(left, dataclasses.replace(SEEN, result=named)) == []
