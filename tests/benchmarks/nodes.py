"""What several nodes cost: `python -m tests.benchmarks.nodes`.

On the clusters of the tests (network namespaces of this machine): the delay of a line, from a
rank's `print` to the front end, beside that of local ranks; and the time to the first line, beside
that of plain `srun torchrun`, in turns.
"""

from __future__ import annotations

import argparse
import queue
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.integration import ray_cluster, slurm_cluster
from tests.integration.kernel import Kernel
from tests.integration.ray_cluster import RayCluster
from tests.integration.slurm_cluster import SlurmCluster
from tests.limits import LONG_S

RANKS = {
    "local": "%%ddp -n 4 -g none",
    "slurm": "%%ddp -n 2 -N 2 --engine slurm -g none",
    "ray": "%%ddp -n 2 -N 2 --engine ray -g none",
}
LINES = 100
PRINT = (
    "import time\nfor _ in range({}):\n    time.sleep(0.1)\n"
    "    if rank == 3: print('t=%f;' % time.time(), flush=True)\n"
)
SCRIPT = (
    "import torch, torch.distributed as dist\ndist.init_process_group('gloo')\n"
    "x = torch.ones(1); dist.all_reduce(x); print('first', x.item(), flush=True)\n"
    "dist.destroy_process_group()\n"
)
CELL = "x = torch.ones(1); dist.all_reduce(x); print('first', x.item())"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        print("delay of a line, ms (median, 95 %)")
        _print_delays("local", folder / "local", {}, ())
        if not slurm_cluster.missing():
            slurm = SlurmCluster()
            try:
                _print_delays("slurm", folder / "slurm", slurm.env, slurm.prefix)
                _print_first_lines(folder / "first", slurm, rounds)
            finally:
                slurm.stop()
        if not ray_cluster.missing():
            ray = RayCluster()
            try:
                _print_delays("ray", folder / "ray", ray.env, ray.prefix)
            finally:
                ray.stop()


def _kernel(folder: Path, env: dict[str, str], prefix: tuple[str, ...]) -> Kernel:
    folder.mkdir()
    kernel = Kernel(folder, env, prefix)
    kernel.run("%load_ext ddp_magic")
    return kernel


def _print_delays(name: str, folder: Path, env: dict[str, str], prefix: tuple[str, ...]) -> None:
    kernel = _kernel(folder, env, prefix)
    try:
        kernel.run(f"{RANKS[name]}\n{PRINT.format(1)}", LONG_S)
        delays = sorted(_delays(kernel, f"{RANKS[name]}\n{PRINT.format(LINES)}"))
    finally:
        kernel.stop()
    middle, high = statistics.median(delays), delays[int(0.95 * len(delays))]
    print(f"  {name:<6} {1000 * middle:.0f}, {1000 * high:.0f}  ({len(delays)} lines)", flush=True)


def _delays(kernel: Kernel, cell: str) -> list[float]:
    message, found = kernel.start(cell), []
    deadline = time.monotonic() + LONG_S
    while time.monotonic() < deadline:
        try:
            said = kernel.client.get_iopub_msg(timeout=LONG_S)
        except queue.Empty:
            break
        now, content = time.time(), said["content"]
        if said["parent_header"].get("msg_id") != message:
            continue
        if content.get("execution_state") == "idle":
            break
        found += [now - float(t) for t in re.findall(r"t=([\d.]+);", content.get("text", ""))]
    return found


def _print_first_lines(folder: Path, slurm: SlurmCluster, rounds: int) -> None:
    kernel = _kernel(folder, slurm.env, slurm.prefix)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    torchrun = (
        "!srun -N2 -n2 --ntasks-per-node=1 --cpus-per-task=2 "
        f"{sys.executable} -m torch.distributed.run --nnodes 2 --nproc-per-node 2 "
        f"--rdzv-backend c10d --rdzv-endpoint n1:29512 {script}"
    )
    times: dict[str, list[float]] = {"%%ddp": [], "!srun torchrun": []}
    try:
        for _ in range(rounds):
            for name, cell in (
                ("%%ddp", f"{RANKS['slurm']}\n{CELL}"),
                ("!srun torchrun", torchrun),
            ):
                began = time.monotonic()
                message = kernel.start(cell)
                kernel.finish(message, LONG_S, until="first 4.0")
                times[name].append(time.monotonic() - began)
                kernel.finish(message, LONG_S)
    finally:
        kernel.stop()
    ours, theirs = (statistics.median(times[name]) for name in times)
    print(
        "first line on two nodes of Slurm, s: "
        f"%%ddp {ours:.1f}, !srun torchrun {theirs:.1f}, ratio {ours / theirs:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
