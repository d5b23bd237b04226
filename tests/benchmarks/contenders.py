"""Ways to run a cell on N fresh ranks from a notebook: ours, and what a user could pick instead.

Each is a list of notebook cells that together start the ranks and run the body on them. Ranks that
a tool keeps are started anew each time: what is measured is the way from nothing to a result.
"""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

RANK_LINES = """
import os
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
"""
INIT = 'import torch.distributed as dist\ndist.init_process_group("gloo")\n'
END = "\ndist.destroy_process_group()\n"
OF_THE_GROUP = """
import torch.distributed as dist
rank, world_size = dist.get_rank(), dist.get_world_size()
"""


@dataclass(frozen=True)
class Contender:
    """A way to run a body on fresh ranks.

    Attributes:
        name: As the table shows it.
        module: What must be installed; "torch" for torchrun.
        cells: From (imports, body, ranks) to the cells that a user would run.
        setup: A cell run once, outside the time.
    """

    name: str
    module: str
    cells: Callable[[str, str, int], list[str]]
    setup: str = "pass"

    @property
    def installed(self) -> bool:
        """Return whether it can run here."""
        return importlib.util.find_spec(self.module) is not None


def _ddp(imports: str, body: str, ranks: int) -> list[str]:
    return [f"%%ddp -n {ranks}\n{imports}{body}"]


def _cold(imports: str, body: str, ranks: int) -> list[str]:
    return [f"%%ddp -n {ranks} --cold\n{imports}{body}"]


def _script(imports: str, body: str) -> str:
    return imports + RANK_LINES + INIT + body + END


def _torchrun(imports: str, body: str, ranks: int) -> list[str]:
    # Written by an ordinary cell, as people do with %%writefile.
    command = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node {ranks}"
    return [f"open('script.py', 'w').write({_script(imports, body)!r})\n!{command} script.py"]


def _function(imports: str, body: str) -> str:
    """Return a function for tools that make the process group themselves."""
    return "def program():\n" + textwrap.indent(imports + OF_THE_GROUP + body, "    ")


def _accelerate(imports: str, body: str, ranks: int) -> list[str]:
    # On a machine without GPUs notebook_launcher runs one process; debug_launcher is the same for
    # CPUs, and sets the same variables.
    return [
        _function(imports, body)
        + f"\nfrom accelerate import debug_launcher\ndebug_launcher(program, num_processes={ranks})"
    ]


def _torchrunx(imports: str, body: str, ranks: int) -> list[str]:
    # Only rank 0's output arrives, by logging.
    return [
        _function(imports, body)
        + "\nimport logging, torchrunx\nlogging.basicConfig(level=logging.INFO)\n"
        f"torchrunx.Launcher(hostnames=['localhost'], workers_per_host={ranks}, backend='gloo')"
        ".run(program)"
    ]


def _ipyparallel(imports: str, body: str, ranks: int) -> list[str]:
    variables = (
        f"import os\nworld_size = {ranks}\nos.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), "
        f"WORLD_SIZE='{ranks}', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))\n"
    )
    code = variables + INIT + imports + body + END
    return [
        "import ipyparallel as ipp, socket\n"
        "with socket.socket() as s:\n    s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]\n"
        f"with ipp.Cluster(n={ranks}, log_level=50) as client:\n"
        f"    view = client[:]\n    view.block = True\n    view.scatter('rank', range({ranks}), "
        "flatten=True)\n    view['port'] = port\n"
        f"    result = view.execute({code!r}, block=True)\n"
        "    print(*result.stdout)"
    ]


def _jupyter_distributed(imports: str, body: str, ranks: int) -> list[str]:
    return [
        "from jupyter_distributed.kernel_group import DistributedKernelGroup\n"
        f"group = DistributedKernelGroup({ranks})\n"
        "await group.start()\n"
        f"done = await group.execute({_script(imports, body)!r})\n"
        "print(done)\n"
        "await group.shutdown()"
    ]


def _nbdistributed(imports: str, body: str, ranks: int) -> list[str]:
    # What is sent before its workers are up is lost: ask until they answer.
    ready = (
        "magic = get_ipython().magics_manager.registry['DistributedMagic']\n"
        "ask = magic._comm_manager.send_to_all\n"
        "while True:\n"
        "    try:\n        ask('get_namespace_info', {}, timeout=0.2)\n        break\n"
        "    except TimeoutError:\n        pass"
    )
    return [f"%dist_init -n {ranks}\n{ready}", imports + OF_THE_GROUP + body]


OURS = Contender("%%ddp", "ddp_magic", _ddp, "%load_ext ddp_magic")
COLD = Contender("%%ddp --cold", "ddp_magic", _cold, "%load_ext ddp_magic")
TORCHRUN = Contender("!torchrun", "torch", _torchrun)
PEERS = (
    Contender("accelerate debug_launcher", "accelerate", _accelerate, "import torch, accelerate"),
    Contender("torchrunx", "torchrunx", _torchrunx, "import torch, torchrunx"),
    Contender("ipyparallel", "ipyparallel", _ipyparallel, "import ipyparallel"),
    Contender(
        "jupyter-distributed",
        "jupyter_distributed",
        _jupyter_distributed,
        "import jupyter_distributed.kernel_group",
    ),
    Contender("nbdistributed", "nbdistributed", _nbdistributed, "%load_ext nbdistributed"),
)
