"""This checkout beside another one: `python -m tests.benchmarks.checkouts DIR`, or `make bench
AGAINST=DIR`.

What must not get worse: how long a cell of fresh ranks and a cell of a session take, what the
kernel's process computes for them, and the memory of a rank. Both run in real kernels, in turns, so
that the machine's noise falls on both alike; what counts is the ratio.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.start import row, wait_until_preloaded
from tests.integration.kernel import Kernel

LIMIT_S = 400.0
HERE = Path(__file__).resolve().parents[2]
REDUCE = "t = torch.ones(1)\ndist.all_reduce(t)\nprint(rank)"
PSS = """
import re
dist.barrier()
print("PSS", re.search(r"Pss: +(\\d+)", open("/proc/self/smaps_rollup").read())[1], "kB")
dist.barrier()
"""
# Runs a cell a few times, and prints milliseconds of wall time and of this process's own, for each.
TIMED = """
import time
wall, own = time.perf_counter(), time.process_time()
for _ in range({count}):
    get_ipython().run_cell_magic("ddp", {options!r}, {body!r})
print("each", (time.perf_counter() - wall) / {count} * 1e3,
      (time.process_time() - own) / {count} * 1e3)
"""


@dataclass(frozen=True)
class Cell:
    """A cell that is timed.

    Attributes:
        title: As the table shows it.
        options: Of `%%ddp`.
        count: How often it runs in a turn.
    """

    title: str
    options: str
    body: str
    count: int


CELLS = (
    Cell("fresh, 1 rank, `pass`", "-n 1", "pass", 6),
    Cell("fresh, 4 ranks, all_reduce and print", "-n 4", REDUCE, 6),
    Cell("session, 4 ranks, `pass`", "-n 4 -s lab", "pass", 20),
    Cell("session, 4 ranks, all_reduce and print", "-n 4 -s lab", REDUCE, 20),
)


@contextmanager
def kernel_of(checkout: Path) -> Iterator[Kernel]:
    """A kernel that imports ddp_magic from a checkout; its own directory for compiled modules."""
    with tempfile.TemporaryDirectory() as directory:
        env = {"PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": f"{directory}/compiled"}
        kernel = Kernel(Path(directory), env)
        try:
            kernel.run("%load_ext ddp_magic")
            for options in sorted({cell.options for cell in CELLS}):
                run(kernel, f"%%ddp {options}\n{REDUCE}")
            wait_until_preloaded(kernel)
            yield kernel
        finally:
            kernel.stop()


def run(kernel: Kernel, cell: str) -> str:
    """Run a cell, and return what it has written.

    Raises:
        RuntimeError: It failed.
    """
    result = kernel.run(cell, LIMIT_S)
    if result.status != "ok":
        raise RuntimeError(result.traceback[-300:] or result.text[-300:])
    return result.text


def time_cell(kernel: Kernel, cell: Cell) -> tuple[float, float]:
    """Return what a cell takes: in all, and of the kernel's process alone, ms."""
    text = run(kernel, TIMED.format(count=cell.count, options=cell.options, body=cell.body))
    found = re.search(r"each (\S+) (\S+)", text)
    if found is None:
        raise RuntimeError(f"no times: {text[-200:]!r}")
    return float(found[1]), float(found[2])


def rank_mib(kernel: Kernel) -> float:
    """Return the memory of one of four ranks, MiB; shared pages by share."""
    text = run(kernel, f"%%ddp -n 4\n{PSS}")
    return statistics.mean(map(float, re.findall(r"PSS (\d+) kB", text))) / 2**10


def main() -> None:
    """Measure in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="another checkout")
    parser.add_argument("--turns", type=int, default=8, help="of each measurement; default 8")
    args = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {}

    def note(title: str, where: str, value: float) -> None:
        found.setdefault(title, {}).setdefault(where, []).append(value)

    with kernel_of(HERE) as here, kernel_of(args.other.resolve()) as there:
        for _ in range(args.turns):
            for where, kernel in (("there", there), ("here", here)):
                note("memory of one of 4 ranks, MiB", where, rank_mib(kernel))
            for cell in CELLS:
                for where, kernel in (("there", there), ("here", here)):
                    wall, own = time_cell(kernel, cell)
                    note(f"{cell.title}, ms", where, wall)
                    note(f"{cell.title}, the kernel's processor time, ms", where, own)
    print(f"{os.cpu_count()} cores; medians of {args.turns} turns\n", flush=True)
    row("", "there", "here", "ratio")
    row(*["---"] * 4)
    for title, values in sorted(found.items()):
        before, now = (statistics.median(values[where]) for where in ("there", "here"))
        row(title, f"{before:.2f}", f"{now:.2f}", f"{now / before:.2f}")


if __name__ == "__main__":
    main()
