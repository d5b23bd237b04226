"""Nested bars and `clear_output()` in JupyterLab."""

from __future__ import annotations

import lab as harness
from conftest import OpenCells, Shoot
from lab import run_cell, seen, text, wait_idle, wait_until
from playwright.sync_api import Page


def test_nested_bars_are_rows_of_the_table(
    open_cells: OpenCells, shoot: Shoot, lab: harness.Lab
) -> None:
    """Beside them, what is printed is a line; in the end their last states are lines, once."""
    page = open_cells(
        "%%ddp -n 2\n"
        "import pathlib, time\n"
        "for epoch in tqdm(range(2), desc='epochs'):\n"
        "    for step in tqdm(range(30), desc='steps', leave=False):\n"
        "        time.sleep(0.05)\n"
        "        while step == 9 and not pathlib.Path(f'saw{epoch}').exists(): time.sleep(0.05)\n"
        "    print('trained', epoch)\n"
    )
    run_cell(page, 1)
    first = "epochs:   0%"
    wait_until(lambda: seen(page, 1).count(first) == 2, harness.IDLE_S, "both ranks' bars")
    shoot(page, 1, "during")
    assert text(page, 1) == ""
    for epoch in range(2):
        (lab.directory / f"saw{epoch}").touch()
    wait_idle(page)
    shoot(page, 1, "after")
    lines = text(page, 1).splitlines()
    assert sum("epochs: 100%" in line for line in lines) in (1, 2)  # folded or not
    assert not any("steps" in line or "\x1b" in line for line in lines)
    assert sum("trained" in line for line in lines) in (2, 3, 4)  # folded or not


def test_clear_output_shows_the_last_epoch(open_cells: OpenCells, shoot: Shoot) -> None:
    """Of text and figures, from four ranks."""
    page = open_cells(
        "%%ddp -n 4\n"
        "import time\n"
        "from IPython.display import clear_output\n"
        "print('loading')\n"
        "for epoch in range(4):\n"
        "    clear_output(wait=True)\n"
        "    print('epoch', epoch, 'of rank', rank)\n"
        "    plt.figure(figsize=(2, 1)); plt.plot(range(epoch + 2)); plt.show()\n"
        "    time.sleep(0.5)\n"
    )
    run_cell(page, 1)
    wait_idle(page)
    shoot(page, 1, "after")
    shown = seen(page, 1)
    assert "loading" not in shown
    assert [shown.count(f"epoch {epoch} of rank") for epoch in range(4)] == [0, 0, 0, 4]
    assert _images(page) == 4


def _images(page: Page) -> int:
    return int(page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea img").count())
