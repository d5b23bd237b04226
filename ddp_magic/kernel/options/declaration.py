"""Every option of `%%ddp`, declared once.

The magic's parser and the keywords of `launch` and `run` (`arguments`), the help and the README's
table (`help`) and TAB completion (`kernel.notebook.completion`) all read this table.
"""

from __future__ import annotations

from ddp_magic.kernel.options import values as read
from ddp_magic.kernel.options.option import HELP, Option
from ddp_magic.wire.specs import default_backend

DEFAULT_CPU_RANKS = 2

OPTIONS = (
    Option(
        name="nproc_per_node",
        flags=("-n", "--nproc-per-node"),
        metavar="N",
        read=read.rank_count,
        what="rank count",
        use="1, 2, ..., gpu, cpu or auto",
        values=read.DEVICE_COUNTS,
        also=("--np", "--nprocs", "--ranks", "--world-size", "--num-processes"),
        has_default=True,
        help="Number of ranks: a number, or torchrun's `gpu`, `cpu` or `auto`. Default: one for "
        f"each chosen GPU; without a GPU, {DEFAULT_CPU_RANKS}.",
    ),
    Option(
        name="gpus",
        flags=("-g", "--gpus"),
        metavar="LIST",
        read=read.gpus,
        what="GPU list",
        use="numbers such as 0,2, UUIDs, free:2 for idle ones, or none",
        values=("free:1", "free:2", "free:4", "free:8", "none"),
        also=("--devices", "--device-ids", "--gpu-ids"),
        fixed=True,
        has_default=True,
        joint=",",
        help="GPUs to use: numbers such as `0,2` (relative to CUDA_VISIBLE_DEVICES) or "
        "UUIDs; `free:2` for two idle ones, which no other notebook gets meanwhile (`free`: one "
        "per rank of `-n`); `none` for the CPU. Default: all.",
    ),
    Option(
        name="session",
        flags=("-s", "--session"),
        metavar="NAME",
        read=read.name,
        what="session name",
        use="a Python name, such as lab",
        help="Run in ranks that are kept: the first such cell starts them, later ones find their "
        "variables. `%ddp_stop NAME` ends them.",
    ),
    Option(
        name="capture",
        flags=("--capture",),
        metavar="NAMES",
        read=read.names,
        what="list of names",
        use="names such as a,b, or none",
        values=("none",),
        joint=",",
        help="Send only these names of the notebook to the ranks, such as `a,b`; `none` sends "
        "nothing. Default: every name that the cell reads.",
    ),
    Option(
        name="pull",
        flags=("--pull",),
        metavar="NAMES",
        read=read.pulls,
        what="list of names",
        use="names such as loss, loss@all or trainer.state@2",
        default=(),
        joint=",",
        help="Bring these names back to the notebook afterwards: `a` from rank 0, `a@2` from rank "
        "2, `a@all` as a list of all ranks' values; dotted names too.",
    ),
    Option(
        name="out",
        flags=("-o", "--out"),
        metavar="NAME",
        read=read.name,
        what="name",
        use="a Python name, such as run",
        keyword=False,
        help="Bind the `Run` to this name in the notebook.",
    ),
    Option(
        name="show",
        flags=("--show",),
        metavar="RANKS",
        read=read.ranks,
        what="list of ranks",
        use="ranks such as 0,2-3",
        has_default=True,
        joint=",",
        help="Ranks whose output is shown, such as `0,2-3`; all ranks run, and errors are always "
        "shown. Default: all.",
    ),
    Option(
        name="quiet",
        flags=("-q", "--quiet"),
        default=False,
        has_default=True,
        help="Show only the output of the ranks, and the rest only if something goes wrong.",
    ),
    Option(
        name="bg",
        flags=("--bg",),
        default=False,
        also=("--background", "--noblock", "--no-block"),
        help="Return at once: the run goes on in the background, and ends with its kernel. "
        "`%ddp_wait` follows it to its end.",
    ),
    Option(
        name="detach",
        flags=("--detach",),
        default=False,
        also=("--detached", "--daemon"),
        help="As `--bg`, but the run outlives the notebook: `%ddp_attach` in any notebook, or "
        "`ddp-magic attach` in a terminal, follows it.",
    ),
    Option(
        name="seed",
        flags=("--seed",),
        metavar="S",
        read=read.seed,
        what="seed",
        use="an integer from -2**63 to 2**64 - 1, such as 42",
        has_default=True,
        help="Seed Python, NumPy and torch, the same on all ranks. Default: each rank draws its "
        "own.",
    ),
    Option(
        name="backend",
        flags=("--backend",),
        metavar="NAME",
        read=read.word,
        what="backend",
        use="gloo, nccl, or one for each device, such as cpu:gloo,cuda:nccl",
        values=("gloo", "nccl", "cpu:gloo,cuda:nccl"),
        fixed=True,
        has_default=True,
        help="Backend of the process group. "
        f"Default: `{default_backend('cuda')}` with GPUs, otherwise `{default_backend('cpu')}`.",
    ),
    Option(
        name="timeout",
        flags=("--timeout",),
        metavar="S",
        read=read.seconds,
        what="number of seconds",
        use="a number above 0, such as 30 or 0.5, and not above 1e9",
        fixed=True,
        has_default=True,
        help="Timeout for collectives, in seconds. Default: torch's. None in a cell that can ask: "
        "`input()`, `breakpoint()`, `--debug`.",
    ),
    Option(
        name="time_limit",
        flags=("--time-limit",),
        metavar="S",
        read=read.seconds,
        what="number of seconds",
        use="a number above 0, such as 30 or 0.5, and not above 1e9",
        has_default=True,
        help="Time limit for the run, in seconds; time in which a rank waits for an answer, the "
        "forkserver imports libraries, or a cluster has the run in its queue, does not count. "
        "Default: none.",
    ),
    Option(
        name="max_restarts",
        flags=("--max-restarts",),
        metavar="K",
        read=read.count,
        what="number of restarts",
        use="0, 1, 2, ...",
        default=0,
        also=("--restarts", "--retries", "--max-retries"),
        has_default=True,
        help="After a failure, restart all ranks, up to K times: the cell runs again from its "
        "first line, `train` goes on from its last checkpoint. Default: 0.",
    ),
    Option(
        name="no_init",
        flags=("--no-init",),
        default=False,
        fixed=True,
        help="Do not initialize a process group.",
    ),
    Option(
        name="profile",
        flags=("--profile",),
        default=False,
        has_default=True,
        help="Show at the end where the time of each rank went, and what limits the run.",
    ),
    Option(
        name="trace",
        flags=("--trace",),
        metavar="FILE",
        read=read.file,
        what="file name",
        use="a path such as trace.json",
        joint=" ",
        help="Write what each rank did when to this file, which https://ui.perfetto.dev shows.",
    ),
    Option(
        name="write",
        flags=("--write",),
        metavar="FILE",
        read=read.file,
        what="file name",
        use="a path such as train.py",
        also=("--script", "--export", "--save-script"),
        joint=" ",
        help="Run nothing, and write the cell, with all that it reads, as a script for plain "
        "`torchrun` to this file.",
    ),
    Option(
        name="cold",
        flags=("--cold",),
        default=False,
        fixed=True,
        has_default=True,
        help="Start the ranks by plain `torch.distributed.run`: nothing is preloaded, each rank "
        "imports for itself.",
    ),
    Option(
        name="engine",
        flags=("--engine",),
        metavar="NAME",
        read=read.word,
        what="engine",
        use="local, torchrun, slurm or ray",
        default="local",
        values=("local", "torchrun", "slurm", "ray"),
        also=("--scheduler", "--launcher"),
        fixed=True,
        has_default=True,
        help="What starts the ranks: `slurm` or `ray` on the nodes of a cluster; `torchrun`, "
        "as `--cold`; that of another package. Default: `local`.",
    ),
    Option(
        name="nnodes",
        flags=("-N", "--nnodes"),
        metavar="N",
        read=read.node_count,
        what="node count",
        use="1, 2, ..., or the fewest and the most, such as 1:2",
        default=1,
        also=("--nodes", "--num-nodes", "--num-machines"),
        fixed=True,
        has_default=True,
        help="Number of nodes, each with `-n` ranks; `1:2`: 1 or 2, as many as the cluster has, "
        "and with `--max-restarts` the run goes on without a node that is lost. Default: 1.",
    ),
    Option(
        name="engine_args",
        flags=("--engine-args",),
        metavar="ARGS",
        read=read.text,
        what="arguments",
        use='one word in quotes, such as "-p gpu -t 30"',
        default="",
        also=("--slurm-args", "--srun-args", "--ray-args"),
        fixed=True,
        has_default=True,
        any_word=True,
        joint=" ",
        help="Arguments for the engine: those of `srun`, such as `-p gpu --gres=gpu:4 -t 30`, or "
        "of `ray start` for each node, such as `--num-gpus 4`.",
    ),
    Option(
        name="check",
        flags=("--check",),
        default=False,
        has_default=True,
        help="Compare every collective of the ranks, and stop at the first on which they differ: "
        "in order, operation, shapes, dtypes, reduction or root.",
    ),
    Option(
        name="debug",
        flags=("--debug",),
        default=False,
        also=("--pdb",),
        help="Stop a rank that raises in the debugger, at the failing line, and hold the others "
        "meanwhile; `%pdb on` does so for all cells. With `--max-restarts` only when no restarts "
        "are left.",
    ),
    Option(
        name="no_raise_error",
        flags=("--no-raise-error",),
        default=False,
        has_default=True,
        help="Show the error of a failed run, but do not fail the cell.",
    ),
    Option(
        name="argv",
        flags=("--",),
        also=("--args", "--arguments", "--script-args"),
        metavar="ARGS",
        read=read.arguments,
        what="arguments",
        use="a list of strings, such as ['--lr', '0.1']",
        default=(),
        help="Arguments of the cell: its `sys.argv[1:]`.",
    ),
    HELP,
)

KEYWORDS = {option.name: option for option in OPTIONS if option.keyword}


def spelling(name: str) -> str:
    """Return the long flag of an option of `%%ddp`."""
    return next(option.spelling for option in OPTIONS if option.name == name)
