"""Pages: what a rank shows between two `clear_output()`."""

from __future__ import annotations

from ddp_magic.display.text.page import MAX_WAITS, PAGE_CHARS, PAGE_LINES, Page


class _Screen:
    """What stands in the places of a page."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.places: list[str] = []

    def look(self, *, final: bool = False) -> list[str]:
        changes = self._page.changes(final=final)
        for _ in range(0 if self.places else MAX_WAITS):  # it waits for more
            changes = changes or self._page.changes(final=final)
        for content in changes:
            assert content.update == (content.place < len(self.places))
            self.places[content.place : content.place + 1] = [str(content.data["text/plain"])]
        return self.places


def _page() -> tuple[Page, _Screen]:
    page = Page(2, "/log")
    return page, _Screen(page)


def _figure(name: str) -> dict[str, str]:
    return {"text/plain": name, "image/png": name}


def test_a_page_grows_until_it_is_cleared() -> None:
    page, screen = _page()
    page.add(["a"])
    assert screen.look() == ["[rank 2] a"]
    page.add(["b"])
    assert screen.look() == ["[rank 2] a\n[rank 2] b"]


def test_text_and_displays_stand_in_their_order() -> None:
    page, screen = _page()
    page.add(["before"])
    page.display(_figure("1"), {})
    page.add(["after"])
    page.display(_figure("2"), {})
    assert screen.look() == ["[rank 2] before", "1", "[rank 2] after", "2"]


def test_a_page_that_waits_stays_until_something_follows() -> None:
    """Otherwise it would flicker; what the new page does not need is blank in the end."""
    page, screen = _page()
    page.add(["old"])
    page.display(_figure("old"), {})
    page.display(_figure("more"), {})
    assert screen.look() == ["[rank 2] old", "old", "more"]
    page.clear(wait=True)
    assert screen.look() == ["[rank 2] old", "old", "more"]
    page.add(["new"])
    assert screen.look() == ["[rank 2] new", "old", "more"]
    page.display(_figure("new"), {})
    assert screen.look() == ["[rank 2] new", "new", "more"]
    page.clear(wait=True)
    assert screen.look() == ["[rank 2] new", "new", ""]
    page.add(["last"])
    assert screen.look(final=True) == ["[rank 2] last", "", ""]


def test_a_page_that_does_not_wait_is_cleared_at_once() -> None:
    page, screen = _page()
    page.add(["old"])
    page.display(_figure("old"), {})
    screen.look()
    page.clear(wait=False)
    assert screen.look() == ["", ""]
    page.add(["new"])
    assert screen.look(final=True) == ["[rank 2] new", ""]


def test_at_the_end_a_page_that_waits_stays() -> None:
    """As in a notebook: nothing has come that would replace it."""
    page, screen = _page()
    page.add(["old"])
    page.clear(wait=True)
    assert screen.look(final=True) == ["[rank 2] old"]
    page.clear(wait=False)
    assert screen.look(final=True) == [""]


def test_the_first_page_waits_for_more() -> None:
    """So that the places of a rank are next to each other; not when it is complete."""
    page, _ = _page()
    assert page.changes() == []
    shown = []
    for i in range(MAX_WAITS + 1):
        page.display(_figure(str(i)), {})
        shown.append(len(page.changes()))
    assert shown == [0] * MAX_WAITS + [MAX_WAITS + 1]
    complete, _ = _page()
    complete.add(["a"])
    complete.clear(wait=True)
    assert len(complete.changes()) == 1


def test_what_has_not_changed_is_not_shown_again() -> None:
    page, _ = _page()
    page.add(["a"])
    page.display(_figure("1"), {})
    assert len(page.changes(final=True)) == 2
    page.clear(wait=True)
    page.add(["a"])
    page.display(_figure("2"), {})
    (change,) = page.changes()
    assert (change.place, change.update) == (1, True)


def test_an_update_of_a_display_in_a_page() -> None:
    """Of all that have this id; what has been cleared cannot be updated."""
    page, screen = _page()
    page.display({"text/plain": "a"}, {}, "x")
    page.display({"text/plain": "b"}, {}, "x")
    page.display({"text/plain": "c"}, {}, "y")
    page.display({"text/plain": "new"}, {}, "x", update=True)
    assert screen.look() == ["new", "new", "c"]
    page.clear(wait=True)
    page.add(["next"])
    page.display({"text/plain": "late"}, {}, "x", update=True)
    assert screen.look(final=True) == ["[rank 2] next", "", ""]


def test_a_long_page_shows_its_end() -> None:
    """With a word on the rest; the count begins anew with the page."""
    page, screen = _page()
    page.add(str(i) for i in range(PAGE_LINES + 5))
    first, *_, last = screen.look()[0].splitlines()
    assert first == "[rank 2] ... 5 lines left out here; all are in /log"
    assert last == f"[rank 2] {PAGE_LINES + 4}"
    page.clear(wait=True)
    page.add(["short"])
    assert screen.look() == ["[rank 2] short"]


def test_a_page_of_long_lines() -> None:
    """It is as short as one of many lines."""
    page, screen = _page()
    page.add("x" * 2 * PAGE_CHARS for _ in range(3))
    assert screen.look()[0].count("x") == PAGE_CHARS
