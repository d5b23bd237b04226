"""Every option of the magics, declared once.

The magic's parser and the keywords of `launch` and `run` (`arguments`), the help and the README's
table (`help`) and TAB completion (`kernel.completion`) all read this table. A new option needs its
declaration here and the code that obeys it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ddp_magic.kernel.options import values as read
from ddp_magic.wire.specs import default_backend

DEFAULT_CPU_RANKS = 2

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


class OptionError(ValueError):
    """A value that an option cannot have, on this machine or beside the other options.

    Attributes:
        name: The option, as Python callers spell it.
        problem: What is wrong with it, and what to do.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option.

    Attributes:
        name: Its name in Python: the keyword of `launch` and `run`.
        flags: Its spellings on the magic's line, the long one last; none for a positional word.
        metavar: Name of its value in the help; empty for a flag, which has none.
        help: Its line in the README, in Markdown, and in the help, without the backticks.
        read: Reads a value, text or Python's own; raises `InvalidValueError`.
        what: What the value is, for "invalid ... 'x'".
        use: Valid values, for "use ...".
        default: Its value where it is not given.
        values: Values that TAB offers.
        also: Spellings that other tools have, for "did you mean ...?".
        fixed: The first cell of a session decides it for all.
        has_default: `%config DDPMagics` can set its value for lines that do not name it. Not for
            what belongs to one cell.
        keyword: Whether `launch` and `run` take it.
        any_word: Whether its value may begin with a hyphen.
    """

    name: str
    flags: tuple[str, ...] = ()
    metavar: str = ""
    help: str
    read: Callable[[object], Any] = read.flag
    what: str = "flag"
    use: str = "True or False"
    default: Any = None
    values: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    fixed: bool = False
    has_default: bool = False
    keyword: bool = True
    any_word: bool = False

    @property
    def spelling(self) -> str:
        """The long flag."""
        return self.flags[-1]

    @property
    def negation(self) -> str:
        """What turns a flag off on a line, where it is on by default; empty if it cannot be."""
        if self.metavar or not self.has_default:
            return ""
        positive = self.spelling.removeprefix("--no-")
        return f"--{positive}" if positive != self.spelling else f"--no-{positive[2:]}"

    def value(self, given: object) -> Any:  # noqa: ANN401 -- of each option's own type
        """Check a value that was given, and convert it.

        Raises:
            ValueError: The option cannot have it; the text says what to use.
        """
        try:
            return self.read(given)
        except read.InvalidValueError:
            shown = " ".join(_REPR.repr(given).split())
            raise ValueError(f"invalid {self.what} {shown}: use {self.use}") from None


HELP = Option(
    name="help",
    flags=("-h", "--help"),
    default=False,
    keyword=False,
    help="Show this help and run nothing.",
)

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
        use="a number above 0, such as 30 or 0.5",
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
        use="a number above 0, such as 30 or 0.5",
        has_default=True,
        help="Time limit for the run, in seconds; time in which a rank waits for an answer, or the "
        "forkserver imports libraries, does not count. Default: none.",
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
        help="Write what each rank did when to this file, which https://ui.perfetto.dev shows.",
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
        use="1, 2, ...",
        default=1,
        also=("--nodes", "--num-nodes", "--num-machines"),
        fixed=True,
        has_default=True,
        help="Number of nodes, each with `-n` ranks. Default: 1.",
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
        "meanwhile. With `--max-restarts` only when no restarts are left.",
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

STATUS_OPTIONS = (
    Option(
        name="run",
        metavar="RUN",
        read=read.word,
        what="run id",
        use="the id of a run, or its end",
        help="The id of a run, or its end. Default: all runs.",
    ),
    Option(
        name="stacks",
        flags=("--stacks",),
        default=False,
        help="Show the Python stack of every rank of the runs that go on.",
    ),
    HELP,
)

SHOW_OPTIONS = (
    replace(
        STATUS_OPTIONS[0],
        help="The id of a run, or its end. Default: the newest run of this notebook, or of any.",
    ),
    HELP,
)

WAIT_OPTIONS = (
    replace(
        STATUS_OPTIONS[0],
        help="The id of a background run, or its end. Default: the only one that goes on, or the "
        "newest of this notebook.",
    ),
    HELP,
)

ATTACH_OPTIONS = (
    replace(
        STATUS_OPTIONS[0],
        help="The id of a background run, or its end. Default: the only one that goes on, or the "
        "newest, of any notebook.",
    ),
    HELP,
)

LOGS_OPTIONS = (
    SHOW_OPTIONS[0],
    Option(
        name="rank",
        flags=("-r", "--rank"),
        metavar="RANK",
        read=read.count,
        what="rank",
        use="0, 1, ...",
        help="Print what this rank wrote. Default: all ranks, each line with its rank.",
    ),
    Option(
        name="lines",
        flags=("-n", "--lines"),
        metavar="N",
        read=read.count,
        what="number of lines",
        use="0, 1, 2, ...",
        help="Print only the last N lines of each rank.",
    ),
    HELP,
)

STOP_OPTIONS = (
    Option(
        name="session",
        metavar="SESSION",
        read=read.word,
        what="session",
        use="the name of a session, or the id of a run",
        help="The session to end, or the id of a run to stop, or its end. Default: the only "
        "background run.",
    ),
    Option(
        name="all",
        flags=("--all",),
        default=False,
        help="End all sessions and background runs of this notebook.",
    ),
    HELP,
)

KEYWORDS = {option.name: option for option in OPTIONS if option.keyword}


def spelling(name: str) -> str:
    """Return the long flag of an option of `%%ddp`."""
    return next(option.spelling for option in OPTIONS if option.name == name)
