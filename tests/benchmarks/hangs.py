"""What is said about programs that hang or compute garbage: `python -m tests.benchmarks.hangs`.

Each cell runs on three ranks in a real Jupyter kernel until the right words are shown. It prints a
table: whether they were, after how many seconds, and what was said last. The last table is the cost
of watching, or of `--check`: cells that are full of collectives, here and in another checkout, or
without and with the option, in turns.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.integration.kernel import Kernel
from tests.mistakes import MISTAKES, SILENT_MISTAKES, Mistake, ask
from tests.spoiled_programs import FALSE_ALARMS, PROGRAMS

FALSE_ALARM_S = 60.0
COSTS = {
    "10^4 small all_reduces": (
        "x = torch.ones(4)\ndist.barrier()\nfor _ in range(10_000): dist.all_reduce(x)"
    ),
    "training of a small network": (
        "model = DDP(torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(8)]))\n"
        "dist.barrier()\nfor _ in range(400): model(torch.randn(64, 256)).sum().backward()"
    ),
}
# The thread that watches is timed too: its share tells what noise hides in the ratio of two runs.
TIMED = """
import threading, time
def watching_s():
    ours = [t for t in threading.enumerate() if t.name == "ddp_magic_beat"]
    used = [open(f"/proc/self/task/{{t.native_id}}/schedstat").read().split()[0] for t in ours]
    return sum(map(int, used)) / 1e9
{before}used, began = watching_s(), time.perf_counter()
{loop}
print('took', time.perf_counter() - began, watching_s() - used)
"""


def new_kernel(tree: str = "") -> Kernel:
    """A kernel with the extension loaded, of another checkout if one is named."""
    env = {"PYTHONPATH": tree} if tree else None
    kernel = Kernel(Path(tempfile.mkdtemp()), env)
    kernel.run("%load_ext ddp_magic")
    kernel.run("%%ddp -n 3\npass")  # the forkserver imports torch
    return kernel


def table(title: str, mistakes: Sequence[Mistake], only: str, options: str = "") -> None:
    """Print what is said about each."""
    print(f"\n| {title} | right | s | said |\n| --- | --- | --- | --- |")
    chosen = [mistake for mistake in mistakes if only in mistake.name]
    right = 0
    for mistake in chosen:
        kernel = new_kernel()  # none hears of another's end
        answer = ask(kernel, mistake, options, FALSE_ALARM_S)
        kernel.stop()
        lines = answer.said.splitlines() or [""]
        told = [line for line in lines if mistake.says and re.search(mistake.says, line)]
        ok = bool(told) if mistake.says else not answer.said and answer.status == "ok"
        right += ok
        last = (told or lines)[-1]
        print(
            f"| {mistake.name} | {'yes' if ok else 'NO'} | {answer.seconds:.1f} | {last[:240]} |",
            flush=True,
        )
    print(f"| **{right} of {len(chosen)}** | | | |")


def cost(title: str, there: tuple[Kernel, str], here: tuple[Kernel, str], turns: int) -> None:
    """Print how much longer cells take in one kernel than in another, and what watching takes."""
    print(f"\n| {title}, 2 ranks | there, s | here, s | ratio | the watching thread |")
    print("| --- | --- | --- | --- | --- |")
    for name, text in COSTS.items():
        before, loop = text.rsplit("\n", 1)
        cell = TIMED.format(before=before + "\n", loop=loop)
        seconds: tuple[list[float], list[float]] = ([], [])
        watching: list[float] = []
        for _ in range(turns):
            for times, (kernel, options) in zip(seconds, (there, here), strict=True):
                shown = kernel.run(f"%%ddp -n 2 --show 0 {options}\n{cell}").text
                took, used = map(float, shown.split("took")[1].split())
                times.append(took)
                if kernel is here[0]:
                    watching.append(used / took)
        first, second = map(statistics.median, seconds)
        share = statistics.median(watching)
        print(f"| {name} | {first:.3f} | {second:.3f} | {second / first:.3f} | {share:.2%} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a program's name")
    parser.add_argument("--against", default="", help="a checkout for the cost of watching")
    parser.add_argument("--cost-of-check", action="store_true", help="measure it")
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    table("mistake, 3 ranks", MISTAKES, options.only)
    table("real program with a line spoiled", PROGRAMS, options.only)
    table("silent mistake, --check", SILENT_MISTAKES, options.only, "--check")
    table("no false alarm", FALSE_ALARMS, options.only)
    table("no false alarm, --check", FALSE_ALARMS, options.only, "--check")
    here = new_kernel(str(Path.cwd()))
    if options.against:
        there = new_kernel(options.against)
        cost("cost of watching", (there, ""), (here, ""), options.turns)
        there.stop()
    if options.cost_of_check:
        cost("cost of --check", (here, ""), (here, "--check"), options.turns)
    here.stop()


if __name__ == "__main__":
    main()
