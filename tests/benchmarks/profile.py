"""What --profile costs: `python -m tests.benchmarks.profile`.

Two ranks time the same loop in turns, some turns with the profiler and some without, so that a
machine that becomes slower or faster affects both alike. It prints the ratios of their times and of
the processor time of the whole process, medians of neighboring turns, and how much of a processor
the profiler's thread used; a busy machine blurs the last two less. The profiler is started and
stopped in the cell, as `--profile` does for a whole cell.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from tests.integration.kernel import Kernel

LOOPS = {
    "the demo's training, in steps": """
        model = tiny_sam().to(device)
        data = SamDataset(*cells(n=24, seed=0))
        def loop(): train(model, data, data, epochs=4, batch_size=4)
        """,
    "10^4 small all_reduces": """
        x = torch.ones(4)
        def loop():
            for _ in range(10_000): dist.all_reduce(x)
        """,
    "training of a small network": """
        model = DDP(nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)]))
        optimizer = optim.SGD(model.parameters(), lr=1e-3)
        def loop():
            for _ in range(200):
                model(torch.randn(64, 256)).sum().backward()
                optimizer.step()
        """,
    "Python alone": """
        def loop(): return sum(i * i % 7 for i in range(10_000_000))
        """,
}
TURNS = """
import statistics, tempfile, threading, time
from pathlib import Path
from ddp_magic.worker.watch.profiler import profiled
loop()
took, cpu, used = {{True: [], False: []}}, {{True: [], False: []}}, 0.0
folder = Path(tempfile.mkdtemp())
for turn in range({turns}):
    for on in ((True, False), (False, True))[turn % 2]:
        dist.barrier()
        with profiled(folder / f"{{turn}}" if on else None, rank, "cpu"):
            began, began_cpu = time.perf_counter(), time.process_time()
            loop()
            took[on].append(time.perf_counter() - began)
            cpu[on].append(time.process_time() - began_cpu)
            for thread in threading.enumerate():
                if thread.name == "ddp_magic_profile":
                    used += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
middle = {{on: statistics.median(times) for on, times in took.items()}}
ratios = [
    statistics.median(a / b for a, b in zip(times[True], times[False])) for times in (took, cpu)
]
print("took", middle[False], middle[True], *ratios, used / sum(took[True]))
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a loop's name")
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    kernel = Kernel(Path(tempfile.mkdtemp()))
    kernel.run("%load_ext ddp_magic")
    print("| 2 ranks | without, s | with, s | ratio | of processor time | processor |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, text in LOOPS.items():
        if options.only not in name:
            continue
        lines = text.strip("\n").splitlines()
        cell = "\n".join(line[8:] for line in lines) + TURNS.format(turns=options.turns)
        shown = kernel.run(f"%%ddp -n 2 --show 0\n{cell}", timeout_s=1200)
        if "took" not in shown.text:
            raise SystemExit(f"{name}: {shown.text} {shown.traceback}")
        numbers = shown.text.rpartition("took")[2].split()[:5]
        print(f"| {name} | " + " | ".join(f"{float(number):.3f}" for number in numbers) + " |")
    kernel.stop()


if __name__ == "__main__":
    main()
