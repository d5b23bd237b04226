"""Kept ranks, and values to ranks and back: `python -m tests.benchmarks.values`.

Beside ipyparallel (its engines are kept, its `push` sends a copy to each) and nbdistributed (which
has no way to send values), where they are installed; through real kernels, in one run.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
from collections.abc import Callable
from typing import Any

from tests.benchmarks.contenders import OURS, PEERS
from tests.benchmarks.start import LIMIT_S, kernel_of, pss_mib, row, wait_until_preloaded
from tests.integration.kernel import Kernel

RANKS = 4
ARRAY = "import numpy as np\narray = np.ones({megabytes} * 125_000)"


def median_s(kernel: Kernel, cell: str | Callable[[int], str], turns: int) -> float:
    """Run a cell some times; return the median of its seconds."""
    seconds = []
    for turn in range(turns):
        result = kernel.run(cell if isinstance(cell, str) else cell(turn), LIMIT_S)
        if result.status == "error":
            raise RuntimeError(result.traceback[-500:] or result.text[-500:])
        seconds.append(result.elapsed_s)
    return statistics.median(seconds)


def ours(megabytes: int, turns: int) -> dict[str, Any]:
    """Measure `%%ddp`."""
    found: dict[str, Any] = {}
    with kernel_of(OURS) as kernel:
        kernel.run(ARRAY.format(megabytes=megabytes))
        start = f"%%ddp -n {RANKS} -s lab\nimport os; print(f'pid={{os.getpid()}};')"
        pids = [int(pid) for pid in re.findall(r"pid=(\d+);", kernel.run(start, LIMIT_S).text)]
        found["print"] = median_s(kernel, "%%ddp -s lab\nprint(rank)", 5 * turns)
        before = sum(map(pss_mib, pids))
        found["push"] = median_s(kernel, "%%ddp -s lab\nx = array.sum()", 1)
        found["memory"] = sum(map(pss_mib, pids)) - before
        found["push again"] = median_s(kernel, "%%ddp -s lab\nx = array.sum()", turns)
        make = f"import numpy as np\nif rank == 0: back = np.ones({megabytes} * 125_000)"
        kernel.run("%%ddp -s lab\n" + make, LIMIT_S)
        found["pull"] = median_s(kernel, "%%ddp -s lab --pull back\n0;", turns)
        kernel.run("%ddp_stop lab")
    with kernel_of(OURS) as kernel:
        kernel.run(ARRAY.format(megabytes=megabytes))
        kernel.run(f"%%ddp -n {RANKS}\nimport numpy", LIMIT_S)
        wait_until_preloaded(kernel)
        change = "array[0] = {turn}\n"
        cell = f"get_ipython().run_cell_magic('ddp', '-n {RANKS}', 'x = array.sum()')"
        found["fresh"] = median_s(kernel, lambda turn: change.format(turn=turn) + cell, turns)
        found["fresh again"] = median_s(kernel, cell, turns)
    return found


def ipyparallel(megabytes: int, turns: int) -> dict[str, Any]:
    """Measure ipyparallel's view of all engines."""
    contender = next(peer for peer in PEERS if peer.name == "ipyparallel")
    found: dict[str, Any] = {}
    with kernel_of(contender) as kernel:
        kernel.run(ARRAY.format(megabytes=megabytes))
        text = kernel.run(
            "import ipyparallel as ipp\n"
            f"cluster = ipp.Cluster(n={RANKS}, log_level=50)\n"
            "view = cluster.start_and_connect_sync()[:]; view.block = True\n"
            "view.execute('import os, numpy')\n"
            "print(''.join(f'pid={pid};' for pid in view.apply(__import__('os').getpid)))",
            LIMIT_S,
        ).text
        pids = [int(pid) for pid in re.findall(r"pid=(\d+);", text)]
        found["print"] = median_s(
            kernel, "print(*view.execute('print(1)', block=True).stdout)", 5 * turns
        )
        before = sum(map(pss_mib, pids))
        push = "view.push({'array': array})\nview.execute('x = array.sum()')"
        found["push"] = median_s(kernel, push, turns)
        found["memory"] = sum(map(pss_mib, pids)) - before
        make = f"first.execute('back = numpy.ones({megabytes} * 125_000)', block=True)"
        kernel.run("first = view.client[0]\n" + make, LIMIT_S)
        found["pull"] = median_s(kernel, "back = first.pull('back', block=True)", turns)
        kernel.run("cluster.stop_cluster_sync()", LIMIT_S)
    return found


def nbdistributed(turns: int) -> dict[str, Any]:
    """Measure nbdistributed's kept workers."""
    contender = next(peer for peer in PEERS if peer.name == "nbdistributed")
    with kernel_of(contender) as kernel:
        start, _ = contender.cells("import torch\n", "", RANKS)
        kernel.run(start, LIMIT_S)
        return {"print": median_s(kernel, "print(rank)", 5 * turns)}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=1000, help="of the array")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores; {RANKS} ranks; {args.megabytes} MB; medians", flush=True)
    found = {"%%ddp": ours(args.megabytes, args.turns)}
    installed = {peer.name for peer in PEERS if peer.installed}
    if "ipyparallel" in installed:
        found["ipyparallel"] = ipyparallel(args.megabytes, args.turns)
    if "nbdistributed" in installed:
        found["nbdistributed"] = nbdistributed(args.turns)
    rows = {
        "print": "kept ranks, a cell that prints, s",
        "push": "array to kept ranks, and its sum, s",
        "push again": "the same again, unchanged, s",
        "memory": "memory of the ranks for it (PSS), MiB",
        "pull": "an array of that size back, s",
        "fresh": "array, changed, to fresh ranks, and its sum, s",
        "fresh again": "unchanged, to fresh ranks, and its sum, s",
    }
    print()
    row("", *found)
    row(*["---"] * (len(found) + 1))
    for key, title in rows.items():
        row(title, *(f"{f[key]:.3g}" if key in f else "" for f in found.values()))


if __name__ == "__main__":
    main()
