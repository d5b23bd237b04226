"""How long a cell of fresh ranks takes, and what memory: `python -m tests.benchmarks.start`.

Everything runs through real Jupyter kernels on this machine, in turns (A B A B ...), so that its
noise falls on all alike; what counts are the ratios within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.contenders import COLD, OURS, PEERS, TORCHRUN, Contender
from tests.integration.kernel import Kernel

LIMIT_S = 400.0
SETTLE_S = 60.0  # for our forkserver to have imported what the first cell has used

TORCH = "import torch\n"
SAM = (
    "import torch\n"
    "from ddp_magic.prelude import (DDP, DataLoader, DiceLoss, SamDataset, SamModel, SamProcessor,"
    " np, plt, tqdm, train)\n"
)
ALL_REDUCE = (
    "t = torch.ones(1)\ndist.all_reduce(t)\nassert t.item() == world_size\nprint('line of', rank)\n"
)
CELLS = {"print and all_reduce": TORCH, "with the SAM prelude": SAM}
SLEEP = "import os, time\nprint(f'pid={os.getpid()};')\ndist.barrier()\ntime.sleep(4)\n"


@contextmanager
def kernel_of(contender: Contender) -> Iterator[Kernel]:
    """A kernel in a directory of its own, set up; whatever it leaves is ended by pid."""
    with tempfile.TemporaryDirectory() as directory:
        # A tool that starts plain `python` is to find this one.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        kernel = Kernel(Path(directory), {"PATH": path})
        try:
            kernel.run(contender.setup, LIMIT_S)
            yield kernel
        finally:
            try:
                left = psutil.Process(kernel.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                left = []
            kernel.stop()
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue


def time_once(kernel: Kernel, cells: Sequence[str]) -> tuple[float, float]:
    """Run the cells; return seconds to the first line of a rank, and to the end of the last cell.

    Raises:
        RuntimeError: A cell failed, or no rank's line has come.
    """
    began, first, text = time.monotonic(), 0.0, ""
    for cell in cells:
        message = kernel.start(cell)
        result = kernel.finish(message, LIMIT_S, until="line of")
        text += result.text
        if "line of" in result.text:
            first = first or time.monotonic() - began
            if not result.status:  # it goes on
                result = kernel.finish(message, LIMIT_S)
        if result.status == "error":
            raise RuntimeError(result.traceback[-300:] or result.text[-300:])
    if not first:
        raise RuntimeError(f"no line of a rank: {text[-200:]!r}")
    return first, time.monotonic() - began


def wait_until_preloaded(kernel: Kernel) -> None:
    """Wait until our forkserver has nothing left to import."""
    deadline = time.monotonic() + SETTLE_S
    status = "print(repr(get_ipython().run_line_magic('ddp_status', '')).split(' · ')[1])"
    while kernel.run(status).text.strip() != "ready" and time.monotonic() < deadline:
        time.sleep(0.2)


def compare(
    contenders: Sequence[Contender], imports: str, ranks: int, turns: int, *, warm_up: int = 0
) -> dict[str, list[tuple[float, float]]]:
    """Time contenders in turns; one that fails is left out from then on, and said.

    Args:
        contenders: What to compare.
        imports: The cell's first lines.
        ranks: How many.
        turns: Of each contender.
        warm_up: Further turns before, which are not counted.
    """
    times: dict[str, list[tuple[float, float]]] = {c.name: [] for c in contenders}
    failed: set[str] = set()
    for turn in range(-warm_up, turns):
        for contender in contenders:
            if contender.name in failed:
                continue
            try:
                with kernel_of(contender) as kernel:
                    cells = contender.cells(imports, ALL_REDUCE, ranks)
                    if contender is OURS:  # as in a notebook: not the first cell of its kind
                        time_once(kernel, cells)
                        wait_until_preloaded(kernel)
                    measured = time_once(kernel, cells)
            except (RuntimeError, TimeoutError) as error:
                failed.add(contender.name)
                print(f"    {contender.name}: {str(error)[:200]!r}", flush=True)
                continue
            if turn >= 0:
                times[contender.name].append(measured)
    return {name: values for name, values in times.items() if values}


def start_up(turns: int) -> dict[str, float]:
    """Time `%load_ext`, and the first cell right after it, warm and cold."""
    seconds: dict[str, list[float]] = {"%load_ext": [], "first %%ddp": [], "first --cold": []}
    for _ in range(turns):
        for name, contender in (("first %%ddp", OURS), ("first --cold", COLD)):
            with tempfile.TemporaryDirectory() as directory:
                kernel = Kernel(Path(directory))
                kernel.run("pass")
                began = time.monotonic()
                seconds["%load_ext"].append(kernel.run("%load_ext ddp_magic").elapsed_s)
                time_once(kernel, contender.cells(TORCH, ALL_REDUCE, 4))
                seconds[name].append(time.monotonic() - began)
                kernel.stop()
    return {name: statistics.median(values) for name, values in seconds.items()}


def memory(contender: Contender, imports: str, ranks: int) -> dict[str, float]:
    """Return PSS in MiB: of a rank (mean), and of all processes but the kernel."""
    with kernel_of(contender) as kernel:
        if contender is OURS:
            time_once(kernel, contender.cells(imports, ALL_REDUCE, ranks))
            wait_until_preloaded(kernel)
        message = kernel.start(contender.cells(imports, SLEEP, ranks)[0])
        text = ""
        while len(pids := set(re.findall(r"pid=(\d+);", text))) < ranks:
            text += kernel.finish(message, LIMIT_S, until=";").text
        time.sleep(1)  # all are past the barrier
        everything = psutil.Process(kernel.pid).children(recursive=True)
        of_ranks = [pss_mib(int(pid)) for pid in pids]
        total = sum(pss_mib(process.pid) for process in everything)
        kernel.finish(message, LIMIT_S)
    return {"rank": statistics.mean(of_ranks), "total": total}


def pss_mib(pid: int) -> float:
    """Return a process's memory, shared pages counted by share, MiB; 0 if it has ended."""
    try:
        return float(psutil.Process(pid).memory_full_info().pss) / 2**20
    except psutil.NoSuchProcess:
        return 0.0


def median(times: Sequence[tuple[float, float]], which: int) -> float:
    """Return the median of first lines (0) or of ends (1)."""
    return statistics.median(pair[which] for pair in times)


def row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def report_cells(contenders: Sequence[Contender], turns: int) -> dict[str, Any]:
    """Time each cell on 4 ranks with each contender."""
    found = {}
    for title, imports in CELLS.items():
        times = found[title] = compare(contenders, imports, 4, turns, warm_up=imports is TORCH)
        whole = median(times[TORCHRUN.name], 1)
        print()
        row(f"4 ranks, {title}", "first line, s", "cell end, s", "torchrun takes")
        row(*["---"] * 4)
        for name, pairs in times.items():
            ratio = "" if name == TORCHRUN.name else f"{whole / median(pairs, 1):.1f} x"
            row(name, f"{median(pairs, 0):.2f}", f"{median(pairs, 1):.2f}", ratio)
    return found


def report_growth(numbers: Sequence[int], turns: int) -> dict[int, Any]:
    """Time the first cell, and measure memory, for each number of ranks."""
    found: dict[int, Any] = {}
    both = (OURS, TORCHRUN)
    print()
    row("ranks", "%%ddp, s", "!torchrun, s", *["PSS a rank, MiB", "torchrun"], "in all", "torchrun")
    row(*["---"] * 7)
    for ranks in numbers:
        times = compare(both, TORCH, ranks, turns)
        used = {c.name: memory(c, SAM, ranks) for c in both}
        found[ranks] = {"times": times, "memory": used}
        ends = [f"{median(times[c.name], 1):.2f}" for c in both]
        row(ranks, *ends, *(f"{used[c.name][k]:.0f}" for k in ("rank", "total") for c in both))
    return found


def main() -> None:
    """Measure, print tables, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="of each measurement; default 3")
    parser.add_argument("--ranks", default="1,2,4,8,16", help="for the growth with ranks")
    parser.add_argument("--no-peers", action="store_true", help="torchrun alone")
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--plot", type=Path, help="draw the growth with ranks")
    args = parser.parse_args()
    peers = [] if args.no_peers else [peer for peer in PEERS if peer.installed]
    print(f"{os.cpu_count()} cores; medians of {args.turns} turns\n", flush=True)
    row("", "s")
    row("---", "---")
    found: dict[str, Any] = {"start": start_up(args.turns)}
    for name, value in found["start"].items():
        row(name, f"{value:.2f}")
    found["cells"] = report_cells([OURS, TORCHRUN, *peers], args.turns)
    found["growth"] = report_growth([int(n) for n in args.ranks.split(",")], args.turns)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    if args.plot:
        draw(found["growth"], args.plot)


def draw(growth: dict[int, Any], path: Path) -> None:
    """Draw time and memory over the number of ranks."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    ranks = list(growth)
    for contender, color in ((OURS, "tab:blue"), (TORCHRUN, "tab:gray")):
        ends = [median(growth[n]["times"][contender.name], 1) for n in ranks]
        sizes = [growth[n]["memory"][contender.name]["total"] / 1024 for n in ranks]
        left.plot(ranks, ends, "o-", color=color, label=contender.name)
        right.plot(ranks, sizes, "o-", color=color, label=contender.name)
    left.set(xlabel="ranks", ylabel="s", yscale="log", title="a cell of fresh ranks, to its end")
    right.set(xlabel="ranks", ylabel="GiB", title="memory (PSS), SAM prelude imported")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(n) for n in ranks])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
