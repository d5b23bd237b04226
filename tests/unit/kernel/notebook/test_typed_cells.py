"""The notebook's cells as they were typed."""

from __future__ import annotations

import threading

import pytest

from ddp_magic.kernel.notebook.typed_cells import TypedCells
from tests.limits import HANG_S

BODY = "print(1)\nx = 2\n"


@pytest.mark.parametrize(
    ("typed", "code", "is_alone"),
    [
        ("%%ddp -n 2\n" + BODY, BODY, True),
        ("%%ddp -n 2\n" + BODY.rstrip(), BODY, True),
        ("\n# a comment\n%%time\n%%ddp -n 2\n" + BODY, BODY, True),
        (f"print('mine')\nget_ipython().run_cell_magic('ddp', '-n 2', {BODY!r})", BODY, False),
        (f"print('mine')\nbody = '''{BODY}'''\nrun(body)", BODY, False),
        ("print('mine')\nrun('''\n" + BODY, BODY, False),
        ("%ddp_wait", "%ddp_wait ", True),
        ("%ddp_wait 12-3\n", "%ddp_wait 12-3", True),
        ("# wait\n%ddp_wait", "%ddp_wait ", True),
        ("print('mine')\n%ddp_wait", "%ddp_wait ", False),
        ("%ddp_wait\nprint('mine')", "%ddp_wait ", False),
    ],
)
def test_what_a_cell_has_beside_a_magic(typed: str, code: str, is_alone: bool) -> None:
    """Only where there is nothing may a rank's `clear_output` clear the cell."""
    cells = TypedCells()
    cells.begin(typed)
    assert cells.has_only(code) is is_alone


def test_a_cell_that_a_cell_runs_is_not_the_notebooks() -> None:
    """`get_ipython().run_cell("%%ddp -n 2 ...")`: the other cell has output too."""
    cells = TypedCells()
    cells.begin("print('mine')\nget_ipython().run_cell(text)")
    cells.begin("%%ddp\n" + BODY)
    assert cells.current.startswith("%%ddp")
    assert not cells.has_only(BODY)
    cells.end()
    assert cells.current.startswith("print")


def test_a_cell_that_has_loaded_the_extension_was_not_seen_to_begin() -> None:
    cells = TypedCells()
    cells.end()
    assert cells.current == ""
    assert not cells.has_only(BODY)


def test_each_thread_has_its_cells() -> None:
    """A subshell runs one while the main shell runs another."""
    cells = TypedCells()
    cells.begin("%%ddp\n" + BODY)
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(cells.current))
    thread.start()
    thread.join(HANG_S)
    assert seen == [""]
    assert cells.has_only(BODY)
