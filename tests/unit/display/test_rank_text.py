"""Pages: what a rank prints between two `clear_output()`."""

from __future__ import annotations

from ddp_magic.display.rank_text import PAGE_CHARS, PAGE_LINES, Page


def test_a_page_grows_until_it_is_cleared() -> None:
    page = Page("/log")
    page.add(["a"])
    page.add(["b"])
    assert page.text(2) == "[rank 2] a\n[rank 2] b"


def test_a_cleared_page_stays_until_something_follows() -> None:
    """Otherwise it would flicker."""
    page = Page("/log")
    page.add(["old"])
    page.clear()
    assert page.text(0) == "[rank 0] old"
    page.add(["new", "lines"])
    assert page.text(0) == "[rank 0] new\n[rank 0] lines"


def test_a_page_has_changed_when_it_has_a_new_line() -> None:
    page = Page("/log")
    assert not page.changed
    page.clear()
    page.add([])
    assert not page.changed
    page.add(["a"])
    assert page.changed


def test_a_long_page_shows_its_end() -> None:
    """With a word on the rest; the count begins anew with the page."""
    page = Page("/log")
    page.add(str(i) for i in range(PAGE_LINES + 5))
    first, *_, last = page.text(0).splitlines()
    assert first == "[rank 0] ... 5 lines left out here; all are in /log"
    assert last == f"[rank 0] {PAGE_LINES + 4}"
    page.clear()
    page.add(["short"])
    assert page.text(0) == "[rank 0] short"


def test_a_page_of_long_lines() -> None:
    """It is as short as one of many lines."""
    page = Page("/log")
    page.add("x" * 2 * PAGE_CHARS for _ in range(3))
    assert page.text(0).count("x") == PAGE_CHARS
