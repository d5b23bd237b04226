"""The README's cells, run in order in one kernel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel
from tests.limits import LONG_S

README = (Path(__file__).parents[2] / "README.md").read_text()
CELLS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
LONG, SHORT = ("n=200", "epochs=6"), ("n=20", "epochs=1")  # of the training


def _without_numbers(lines: list[str]) -> list[str]:
    """Return lines in one order, without what differs from run to run."""
    return sorted(re.sub(r"\d+(\.\d+)?", "0", line) for line in lines)


@pytest.mark.slow
def test_every_cell_runs(kernel: Kernel) -> None:
    """A cell that is copied from the README works, after those above it; here it trains briefly."""
    for cell in CELLS:
        if "train(model" in cell:
            assert all(words in cell for words in LONG)
            for long, short in zip(LONG, SHORT, strict=True):
                cell = cell.replace(long, short)  # noqa: PLW2901
        result = kernel.run(cell, LONG_S)
        assert result.status == "ok", (cell, result.traceback)
    assert kernel.run("%ddp_stop --all").status == "ok"


def test_the_first_cell_prints_what_the_readme_shows(kernel: Kernel) -> None:
    """The ranks' lines and the last line, but for their order and the numbers in them."""
    result = kernel.run(next(cell for cell in CELLS if cell.startswith("%%ddp")))
    _, *shown = README.partition("```text\n")[2].partition("```")[0].splitlines()
    assert _without_numbers([*result.lines, result.summary]) == _without_numbers(shown)
