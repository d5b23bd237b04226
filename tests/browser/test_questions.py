"""What a rank asks, in JupyterLab's own input box."""

from __future__ import annotations

from conftest import OpenCells, Shoot
from lab import IDLE_S, interrupt, run_cell, seen, text, wait_idle, wait_seen, wait_until
from playwright.sync_api import Page

BOX = ".jp-Stdin-input"


def _open_boxes(page: Page) -> int:
    return page.locator(f"{BOX}:visible").count()


def _answer(page: Page, prompt: str, answer: str) -> None:
    """Answer the newest box, once it shows this prompt."""

    def asked() -> bool:
        prompts = page.locator(".jp-Stdin-prompt:visible")
        return prompts.count() > 0 and prompt in prompts.last.inner_text()

    wait_until(asked, IDLE_S, f"a box with {prompt!r}")
    box = page.locator(f"{BOX}:visible").last.element_handle()
    assert box is not None
    box.fill(answer)
    box.press("Enter")
    box.wait_for_element_state("hidden")  # else the next answer would go there


def test_the_debugger_of_a_rank_is_in_the_cell(open_cells: OpenCells, shoot: Shoot) -> None:
    """The box names the rank; what was asked and answered stays in the cell."""
    page = open_cells(
        "%%ddp -n 2\n"
        "if rank == 1:\n"
        "    name = input('name? ')\n"
        "    breakpoint()\n"
        "    print('hello', name)\n"
        "dist.barrier()\n"
    )
    run_cell(page, 1)
    _answer(page, "[rank 1] name? ", "Bob")
    wait_seen(page, 1, "-> print('hello', name)")
    _answer(page, "[rank 1] (Pdb) ", "p name * 2")
    wait_seen(page, 1, "'BobBob'")
    shoot(page, 1, "debugger")
    _answer(page, "[rank 1] (Pdb) ", "c")
    wait_idle(page)
    shoot(page, 1, "after")
    assert "[rank 1] hello Bob" in text(page, 1)
    assert "[rank 1] name? Bob" in " ".join(seen(page, 1).split())
    assert _open_boxes(page) == 0


def test_stop_ends_a_cell_that_asks(open_cells: OpenCells, shoot: Shoot) -> None:
    """And the next cell asks as if nothing had been."""
    page = open_cells(
        "%%ddp -n 2\nif rank == 1:\n    input('first? ')\ndist.barrier()\n",
        "%%ddp -n 1\nprint('got', input('second? '))\n",
    )
    run_cell(page, 1)
    wait_seen(page, 1, "first? ")
    interrupt(page)
    wait_idle(page)
    shoot(page, 1, "stopped")
    assert "KeyboardInterrupt: rank 0 stopped" in text(page, 1)
    run_cell(page, 2)
    _answer(page, "second? ", "Ann")
    wait_idle(page)
    shoot(page, 2, "after")
    assert "[rank 0] got Ann" in text(page, 2)


def test_a_question_goes_with_its_rank(open_cells: OpenCells, shoot: Shoot) -> None:
    """Its box too, and JupyterLab runs the next cell, which it refuses while a kernel asks."""
    page = open_cells(
        "%%ddp -n 2\nimport time\nif rank == 1:\n    input('first? ')\n    input('second? ')\n"
        "time.sleep(2)\n1 / 0\n",
        "print('the next')",
    )
    run_cell(page, 1)
    _answer(page, "first? ", "Ann")
    wait_seen(page, 1, "ZeroDivisionError")
    wait_idle(page)
    shoot(page, 1, "failed")
    assert _open_boxes(page) == 0
    assert "[rank 1] first? Ann" in text(page, 1)
    run_cell(page, 2)
    wait_seen(page, 2, "the next")
