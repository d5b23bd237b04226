"""What the ranks do when a fault comes: programs as people write them, and how they are started."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from tests.integration.kernel import DEAF

MODULE = "chaos_slow_import"  # in the kernels' working directory; its import takes a while
VALUE = "chaos_values"  # in the notebook
VALUES = f"import numpy as np; {VALUE} = np.arange(4_000_000)"
IMPORTED = "from ddp_magic import launch"  # a kernel without descriptors could not import it
SLOW_IMPORT = "import time\nfor _ in range(40): time.sleep(0.02)\n"

# The rest of a program sees: `steps`, how many steps it is to take; `step()`, in which the fault
# of a rank may come; `culprit`, the rank with the fault.
HEAD = """
import atexit, os, signal, subprocess, sys, threading, time
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
rank, world, culprit, steps = dist.get_rank(), dist.get_world_size(), {rank}, {steps}
class Boom(Exception): pass
due = [time.monotonic() + {when_s}] if rank == culprit else []
def fault():
    {fault}
def step():
    time.sleep(0.02)
    if due and time.monotonic() > due[0]:
        due.clear()
        fault()
{before}
print(f'up {{rank}} pid={{os.getpid()}}.', flush=True)
"""


@dataclass(frozen=True)
class Program:
    """What the ranks do.

    Attributes:
        text: Lines of Python, after `HEAD`.
        steps: Whether it takes steps, in which Python code can raise, and ends after the last one.
        collective: Whether each step needs all ranks.
        deaf: Ranks that do not answer Stop: "culprit", "all", or "" for none.
        in_session: Whether a session can go on after it.
        writes: Whether its steps write to stdout or stderr, and raise if those are closed.
        workers: Whether it cannot go on without its `DataLoader` workers.
    """

    text: str
    steps: bool = True
    collective: bool = False
    deaf: str = ""
    in_session: bool = True
    writes: bool = False
    workers: bool = False


_TRAPPED = "trap '' INT TERM; sleep 300; sleep 300"  # `sh` and its children ignore both

PROGRAMS = {
    "compute loop": Program(
        "x = torch.rand(64, 64)\nfor _ in range(steps):\n    x @ x\n    step()"
    ),
    "all_reduce loop": Program(
        "for _ in range(steps):\n    t = torch.ones(4)\n    dist.all_reduce(t)\n"
        "    assert t[0] == world\n    step()",
        collective=True,
    ),
    "DDP steps": Program(
        "model = DistributedDataParallel(torch.nn.Linear(32, 32))\n"
        "for _ in range(steps):\n    model(torch.rand(8, 32)).sum().backward()\n    step()",
        collective=True,
    ),
    "DataLoader with workers": Program(
        "class Rows(Dataset):\n"
        "    def __len__(self): return steps\n"
        "    def __getitem__(self, i): time.sleep(0.01); return i\n"
        "for _ in DataLoader(Rows(), num_workers=2):\n    step()",
        workers=True,
    ),
    "DataLoader with deaf workers": Program(
        "def ignore(_):\n"
        "    for sig in (signal.SIGINT, signal.SIGTERM): signal.signal(sig, signal.SIG_IGN)\n"
        "class Rows(Dataset):\n"
        "    def __len__(self): return 1000\n"
        "    def __getitem__(self, i):\n"
        "        time.sleep(1000 if i > 20 else 0.01)\n        return i\n"
        "for _ in DataLoader(Rows(), num_workers=2, worker_init_fn=ignore):\n    step()",
        steps=False,
    ),
    "flood of lines": Program(
        "for i in range(steps):\n"
        "    for _ in range(50): print('line', i, 'x' * 100 * (rank + 1))\n    step()",
        writes=True,
    ),
    "figures": Program(
        "from IPython.display import HTML, display\n"
        "for i in range(steps):\n    if i % 10 == 0: display(HTML(f'<b>{i}</b>'))\n    step()"
    ),
    "progress bar": Program(
        "from tqdm.auto import tqdm\nfor _ in tqdm(range(steps)):\n    step()", writes=True
    ),
    "value of the notebook": Program(
        f"assert {VALUE}[-1] == len({VALUE}) - 1\nfor _ in range(steps): step()"
    ),
    "sleep": Program("time.sleep(1000)", steps=False),
    "long C call": Program(
        "import ctypes\nwait = ctypes.CDLL(None).usleep\nwhile True: wait(900_000)", steps=False
    ),
    "holds the interpreter lock": Program(
        f"if rank == culprit:\n    {DEAF}\ntime.sleep(1000)", steps=False, deaf="culprit"
    ),
    "ignores SIGINT": Program(
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: time.sleep(0.1)",
        steps=False,
        deaf="all",
    ),
    "deadlock of threads": Program(
        "lock = threading.Lock()\nlock.acquire(), lock.acquire()", steps=False
    ),
    "hung collective": Program(
        "if rank == culprit: time.sleep(1000)\ndist.all_reduce(torch.ones(1))", steps=False
    ),
    "subprocess": Program(
        "child = subprocess.Popen(['sleep', '300'])\nfor _ in range(steps): step()"
    ),
    "deaf subprocess": Program(
        f"child = subprocess.Popen(['sh', '-c', {_TRAPPED!r}])\nfor _ in range(steps): step()"
    ),
    "deaf detached subprocess": Program(
        f"child = subprocess.Popen(['sh', '-c', {_TRAPPED!r}], start_new_session=True)\n"
        "for _ in range(steps): step()"
    ),
    "waits for a deaf subprocess": Program(
        f"subprocess.run(['sh', '-c', {_TRAPPED!r}])", steps=False
    ),
    "slow import": Program(f"import {MODULE}\nfor _ in range(steps): step()"),
    "slow exit handler": Program(
        "def save():\n    time.sleep(1)\n    print('saved')\n"
        "atexit.register(save)\nfor _ in range(steps): step()",
        in_session=False,
    ),
    "hung exit handler": Program(
        "atexit.register(time.sleep, 1000)", steps=False, in_session=False
    ),
    "hung thread": Program(
        "threading.Thread(target=time.sleep, args=(1000,)).start()", steps=False, in_session=False
    ),
}


BESIDE_A_THREAD = """
import threading
def beside():
    import torch, torch.distributed as dist, time
    for _ in range(40):
        total = torch.ones(1); dist.all_reduce(total); time.sleep(0.02)
    return total.item()
def launch_beside():
    try:
        print('beside', ddp_magic.launch(beside, nproc_per_node=2).results)
    except Exception as raised:
        print('beside', raised)
thread = threading.Thread(target=launch_beside)
thread.start()
error = None
try:
    {call}
except BaseException as raised:
    error = raised
thread.join()  # outside of `except`: an interrupt here is no context of that error
if error is not None: raise error
""".strip()


def program_text(
    name: str, *, rank: int, when_s: float, steps: int, fault: str, before: str
) -> str:
    """Return a program's text.

    Args:
        name: Which program.
        rank: The rank with the fault.
        when_s: When `fault` comes, in seconds after the program's start.
        steps: How many steps it takes.
        fault: Lines of Python that the rank runs in a step.
        before: Lines of Python that all ranks run before the first step.
    """
    fault = textwrap.indent(fault, "    ").strip()
    head = HEAD.format(rank=rank, when_s=when_s, steps=steps, fault=fault, before=before)
    return head.strip() + "\n" + PROGRAMS[name].text


def cell_of(text: str, kept: str, ranks: int, time_limit_s: float | None) -> str:
    """Return the notebook cell that runs a program.

    Args:
        text: The program.
        kept: How: "one-shot", "session", "launch", or "launch beside another", in a thread.
        ranks: On how many ranks.
        time_limit_s: `--time-limit`, in seconds.
    """
    if kept.startswith("launch"):
        limit = "" if time_limit_s is None else f", time_limit={time_limit_s}"
        body = textwrap.indent(text, "    ")
        call = f"ddp_magic.launch(program, nproc_per_node={ranks}{limit})"
        if kept != "launch":
            call = BESIDE_A_THREAD.format(call=call)
        return f"import ddp_magic\ndef program():\n{body}\n{call}"
    options = f"-n {ranks}" + (f" --session {SESSION}" if kept == "session" else "")
    if time_limit_s is not None:
        options += f" --time-limit {time_limit_s}"
    return f"%%ddp {options}\n{text}"


SESSION = "chaos"
