"""What is in sight of a cell's outputs in JupyterLab: many figures, the table, an error."""

from __future__ import annotations

import re
import time

import lab as harness
from conftest import OpenCells, Shoot
from lab import (
    open_notebook,
    outputs,
    restart_kernel,
    run_cell,
    save,
    seen,
    text,
    wait_idle,
    wait_seen,
    wait_until,
)
from playwright.sync_api import Page

from ddp_magic.display.table_place import OLD_S

FIGURES = (
    "%%ddp -n 4\n"
    "for i in range(10):\n"
    "    print('figure', i)\n"
    "    plt.figure(figsize=(2, 1)); plt.plot([1, i]); plt.title(f'{rank}.{i}'); plt.show()\n"
    "dist.barrier()\n"
    "if rank == 2: raise ValueError('after forty figures')\n"
    "dist.barrier()\n"
)


def _below(page: Page, cell: int, upper: str, lower: str) -> bool:
    """Return whether what says `lower` is drawn below what says `upper`, in one cell's output."""
    area = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(cell)
    boxes = [
        area.locator(".jp-OutputArea-output", has_text=words).last.bounding_box()
        for words in (upper, lower)
    ]
    assert boxes[0] is not None
    assert boxes[1] is not None
    return boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"] + 1


def _images(page: Page) -> int:
    return int(page.locator(".jp-OutputArea img").count())


def test_an_error_after_forty_figures_is_in_sight(open_cells: OpenCells, shoot: Shoot) -> None:
    """With its reason in the closing line; no output is behind a button."""
    page = open_cells(FIGURES)
    run_cell(page, 1)
    wait_idle(page)
    shoot(page, 1, "after")
    assert len(outputs(page, 1)) <= 45
    assert page.locator(".jp-TrimmedOutputs").count() == 0
    shown = seen(page, 1)
    assert "Cell In[2], line 6" in shown
    reason = "failed · rank 2 raised ValueError at line 6: after forty figures"
    assert reason in shown.splitlines()[0]  # the last is below forty figures
    assert shown.count(reason) == 2
    assert _images(page) >= 12
    for rank in range(4):
        assert re.search(
            rf"\[rank {rank}\] the last of \d+ displays; %ddp_show \S+ shows all", shown
        )


def test_all_figures_are_shown_again(open_cells: OpenCells, shoot: Shoot) -> None:
    """By `%ddp_show`, also after the page was loaded again and the kernel restarted."""
    page = open_cells(FIGURES, "%ddp_show")
    run_cell(page, 1)
    wait_idle(page)
    page.reload()
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.content?.activeCell != null")
    wait_idle(page)
    restart_kernel(page)
    wait_idle(page)
    run_cell(page, 0)
    wait_idle(page)
    run_cell(page, 2)
    wait_idle(page)
    area = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(2)
    images = area.locator(".jp-OutputArea img")
    wait_until(lambda: images.count() == 40, harness.IDLE_S, "40 figures")  # drawn after it is idle
    shoot(page, 2, "again")
    assert area.locator(".jp-TrimmedOutputs").count() == 0
    shown = seen(page, 2)
    assert "ValueError: after forty figures" in shown
    assert [shown.count(f"[rank {rank}]\n") >= 1 for rank in range(4)] == [True] * 4


def test_the_table_stands_below_the_newest_output(
    open_cells: OpenCells, shoot: Shoot, lab: harness.Lab
) -> None:
    """While the run goes on, below text and figures; then the closing line does."""
    page = open_cells(
        "%%ddp -n 2\nimport pathlib, time\n"
        "def wait(name):\n"
        "    while not pathlib.Path(name).exists(): time.sleep(0.05)\n"
        "for step in range(3):\n"
        "    print('step', step)\n"
        "    if step == 1: plt.figure(figsize=(3, 1)); plt.plot([1, 2]); plt.show()\n"
        "    time.sleep(1); wait(f'go{step}')\n"
    )
    run_cell(page, 1)
    for step in range(3):
        wait_seen(page, 1, f"step {step}")
        wait_seen(page, 1, "running")
        time.sleep(0.5)  # for the figures
        shoot(page, 1, f"step{step}")
        assert _below(page, 1, f"step {step}", "· running ·")
        if step == 1:
            wait_until(lambda: _images(page) == 2, harness.IDLE_S, "two figures")
            assert _below(page, 1, "[rank 1]", "· running ·")
        (lab.directory / f"go{step}").touch()
    wait_idle(page)
    shoot(page, 1, "after")
    assert _below(page, 1, "step 2", "· ok")
    assert _below(page, 1, "2 ranks on the CPU", "step 0")
    assert "running" not in seen(page, 1)


def test_a_table_in_an_old_page_says_how_to_see_more(
    open_cells: OpenCells, shoot: Shoot, lab: harness.Lab
) -> None:
    """Jupyter sends the page that was loaded again nothing more of the cell."""
    page = open_cells("%%ddp -n 2\nimport time\nprint('begun', flush=True)\ntime.sleep(1000)")
    run_cell(page, 1)
    wait_seen(page, 1, "running")
    page.wait_for_timeout(1500 * OLD_S)
    assert "%ddp_show" not in seen(page, 1)  # the table is a new one each second
    save(page)
    path = next(lab.directory.glob("test_a_table_in_an_old_page*.ipynb"))
    open_notebook(page, lab, path, kernel=False)
    wait_seen(page, 1, "running")
    wait_seen(page, 1, "no news for 10 s: after a page reload or a kernel restart, %ddp_show ")
    shoot(page, 1, "old")


def test_labels_have_colors(open_cells: OpenCells, shoot: Shoot) -> None:
    """Of text and of figures; what all ranks print has none."""
    page = open_cells(
        "%%ddp -n 2\nprint('all'); print('rank', rank)\n"
        "plt.figure(figsize=(3, 1)); plt.plot([1, 2]); plt.show()"
    )
    run_cell(page, 1)
    wait_idle(page)
    shoot(page, 1, "after")
    assert "[ranks 0-1] all" in text(page, 1)
    for name in ("ansi-cyan-fg", "ansi-green-fg"):
        assert page.locator(f".jp-OutputArea .{name}").count() == 1
    labels = page.locator(".jp-OutputArea .jp-RenderedHTML div[style*=color]")
    assert sorted(labels.all_inner_texts()) == ["[rank 0]", "[rank 1]"]
