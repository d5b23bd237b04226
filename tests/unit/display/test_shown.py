"""What stays on the screen when one rank clears its output."""

from __future__ import annotations

from typing import Any

from ddp_magic.display.shown import MAX_CHARS, Display, Shown


def _rank(rank: int) -> dict[str, Any]:
    return {"ddp": {"rank": rank}}


def test_a_ranks_lines_and_displays_are_removed() -> None:
    """Those of the others, the table and notes stay, in their order."""
    shown = Shown()
    shown.display("table", {"text/plain": "table"}, {}, update=False)
    shown.text("[rank 0] a\n[rank 1] b\nnote\n")
    shown.display("x", {"text/plain": "x"}, _rank(0), update=False)
    shown.display("y", {"text/plain": "old"}, _rank(1), update=False)
    shown.display("y", {"text/plain": "new"}, _rank(1), update=True)
    shown.text("[rank 0] c\n[rank 1] ha")
    shown.text("lf")
    assert shown.remove(0)
    assert shown.entries("/logs") == [
        Display("table", {"text/plain": "table"}, {}),
        "[rank 1] b\nnote\n",
        Display("y", {"text/plain": "new"}, _rank(1)),
        "[rank 1] half",
    ]
    assert not shown.remove(0)
    assert not shown.remove(2)


def test_a_line_of_several_ranks_stays_the_others() -> None:
    shown = Shown()
    shown.text("[ranks 0-3] a\n[ranks 0, 2] b\n[ranks 0-1, 10] c\n[rank 10] d\n")
    shown.remove(0)
    assert shown.entries("/logs") == ["[ranks 1-3] a\n[rank 2] b\n[ranks 1, 10] c\n[rank 10] d\n"]


def test_what_a_rank_quotes_is_its_own() -> None:
    shown = Shown()
    shown.text("[rank 1] [rank 0] quoted\n")
    assert not shown.remove(0)


def test_earlier_attempts_stay() -> None:
    shown = Shown()
    shown.text("[rank 0] first\n")
    shown.keep()
    shown.text("[rank 0] second\n")
    assert shown.remove(0)
    assert shown.entries("/logs") == ["[rank 0] first\n"]


def test_of_much_text_the_end_is_kept() -> None:
    """With a word on the rest."""
    shown = Shown()
    line = "[rank 1] " + "x" * 990 + "\n"
    for _ in range(5000):
        shown.text(line)
    note, text = shown.entries("/logs")
    assert isinstance(text, str)
    assert MAX_CHARS - 1000 <= len(text) <= 2 * MAX_CHARS
    assert note == f"... {5000 - len(text) // 1000:,} lines left out here; all are in /logs\n"
