"""One JupyterLab for all browser tests, a page and a kernel of its own for each.

With $DDP_MAGIC_SCREENSHOTS set, every test leaves pictures of its notebook in that directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import lab as harness
import pytest
from playwright.sync_api import Page

LOAD = "%load_ext ddp_magic"

OpenCells = Callable[..., Page]
Shoot = Callable[[Page, int, str], None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this directory: `-m 'not browser'` leaves it out, and so does `make test`."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)


def require_chromium() -> None:
    """Skip a test without a browser; it fails where $DDP_MAGIC_REQUIRE_BROWSER is set (CI)."""
    if harness.chromium() is None and not os.environ.get("DDP_MAGIC_REQUIRE_BROWSER"):
        pytest.skip("no Chromium: apt-get install chromium")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Lab]:
    """A JupyterLab server."""
    require_chromium()
    server = harness.start_lab(tmp_path_factory.mktemp("notebooks"))
    yield server
    server.stop()


@pytest.fixture(scope="module")  # closed early: while it is open, this thread has an asyncio loop
def chromium() -> Iterator[Page]:
    """A headless browser."""
    with harness.browser() as page:
        yield page


@pytest.fixture
def open_cells(
    lab: harness.Lab, chromium: Page, request: pytest.FixtureRequest
) -> Iterator[OpenCells]:
    """Open a new notebook of these cells; cell 0, which loads the extension, has been run."""
    pages: list[Page] = []

    def opener(*cells: str) -> Page:
        path = harness.make_notebook(lab.directory / f"{request.node.name}.ipynb", [LOAD, *cells])
        page = chromium.context.new_page()
        pages.append(page)
        harness.open_notebook(page, lab, path)
        harness.run_cell(page, 0)
        harness.wait_idle(page)
        return page

    yield opener
    for page in pages:
        page.close()
    lab.end_kernels()


@pytest.fixture
def shoot(request: pytest.FixtureRequest) -> Shoot:
    """Take a picture of a cell, named after the test and the moment, if pictures are wanted."""
    directory = os.environ.get("DDP_MAGIC_SCREENSHOTS")

    def shooter(page: Page, cell: int, moment: str) -> None:
        if directory:
            name = f"{request.node.name.removeprefix('test_')}-{moment}.png"
            harness.screenshot(page, Path(directory) / name, cell)

    return shooter
