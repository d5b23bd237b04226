"""What a flood of lines does to a notebook's page: `python -m tests.benchmarks.page`.

Ranks print 100,000 lines in a real JupyterLab, in Chromium. Printed are the time until the page is
idle, and the longest time for which it drew nothing and answered no key (between two frames).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.start import row
from tests.browser import lab as harness

LIMIT_S = 300.0
CELLS = {
    "%%ddp, 1 rank, 100,000 lines": "%%ddp -n 1\n"
    "for i in range(100_000):\n    print('line', i, 'x' * 50)",
    "%%ddp, 4 ranks, 25,000 lines each": "%%ddp -n 4\n"
    "for i in range(25_000):\n    print('line', i, 'x' * 50)",
    "a plain cell, 1,000 lines": "for i in range(1_000):\n    print('line', i, 'x' * 50)",
}
# Longest time between two frames, in ms, since the last reset.
FRAMES = """
() => {
    window.longest = 0;
    let last = performance.now();
    const frame = now => {
        window.longest = Math.max(window.longest, now - last);
        last = now;
        requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
}
"""


def main() -> None:
    """Measure in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="of each cell; default 3")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {title: [] for title in CELLS}
    with tempfile.TemporaryDirectory() as directory, harness.browser() as page:
        server = harness.start_lab(Path(directory))
        try:
            for turn in range(args.turns):
                path = Path(directory) / f"{turn}.ipynb"
                harness.make_notebook(
                    path, ["%load_ext ddp_magic", "%%ddp -n 4\npass", *CELLS.values()]
                )
                harness.open_notebook(page, server, path)
                # The first cell of ranks is slower, and so is one during the imports after it.
                for cell in (0, 1, 1):
                    harness.run_cell(page, cell)
                    harness.wait_idle(page, LIMIT_S)
                page.evaluate(FRAMES)
                for cell, title in enumerate(CELLS, start=2):
                    page.evaluate("() => { window.longest = 0; }")
                    harness.run_cell(page, cell)
                    idle_s = harness.wait_idle(page, LIMIT_S)
                    page.wait_for_timeout(500)  # what is still to be drawn
                    found[title].append((idle_s, page.evaluate("window.longest") / 1e3))
        finally:
            server.stop()
    print(f"{os.cpu_count()} cores; medians of {args.turns} turns\n", flush=True)
    row("", "idle after, s", "longest freeze, s")
    row(*["---"] * 3)
    for title, values in found.items():
        row(title, *(f"{statistics.median(value[k] for value in values):.2f}" for k in (0, 1)))


if __name__ == "__main__":
    main()
