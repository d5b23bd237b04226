"""`%%ddp` in Notebook 7, which shows one notebook a page: the first cell, Stop, figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lab as harness
import pytest
from conftest import LOAD, Shoot, require_chromium
from lab import interrupt, open_notebook, outputs, run_cell, seen, text, wait_idle, wait_seen
from playwright.sync_api import Page

CELLS = [
    LOAD,
    "%%ddp -n 2\nx = torch.ones(1)\ndist.all_reduce(x)\nprint('sum', x.item())",
    "%%ddp -n 2\nimport time\nprint('waits')\ntime.sleep(600)",
    "%%ddp -n 2\nplt.figure(figsize=(2, 2))\nplt.plot([rank, 1])\nplt.show()",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A notebook of these cells, open in Notebook 7."""
    require_chromium()
    directory: Path = tmp_path_factory.mktemp("notebook7")
    server = harness.start_lab(directory, application="notebook")
    try:
        with harness.browser() as page:
            open_notebook(page, server, harness.make_notebook(directory / "first.ipynb", CELLS))
            run_cell(page, 0)
            wait_idle(page)
            yield page
    finally:
        server.stop()


def test_the_first_cell(page: Page, shoot: Shoot) -> None:
    """What every rank prints is seen, and the closing line."""
    run_cell(page, 1)
    wait_idle(page)
    shoot(page, 1, "after")
    shown = seen(page, 1)
    assert "[ranks 0-1] sum 2" in shown
    assert "2 ranks · " in shown


def test_stop(page: Page, shoot: Shoot) -> None:
    """The button ends the ranks, and the cell says where they were."""
    run_cell(page, 2)
    wait_seen(page, 2, "waits")
    interrupt(page)
    wait_idle(page)
    shoot(page, 2, "after")
    assert "KeyboardInterrupt: ranks 0-1 stopped at line 4" in text(page, 2)


def test_figures_of_every_rank_are_seen(page: Page, shoot: Shoot) -> None:
    run_cell(page, 3)
    wait_idle(page)
    shoot(page, 3, "after")
    images = [o for o in outputs(page, 3) if "image/png" in o.get("data", {})]
    assert len(images) == 2
    assert page.locator(".jp-OutputArea img").count() == 2
