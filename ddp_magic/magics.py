"""The magics: parse the line, hand over, raise what went wrong."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from typing import Any

from IPython.core import magic_arguments
from IPython.core.error import UsageError
from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class
from traitlets import Bool, List, Unicode, Union, observe

from ddp_magic import cell, devices, prelude
from ddp_magic.display import CellScreen
from ddp_magic.engines.forkserver import Forkserver
from ddp_magic.engines.torchrun import Torchrun
from ddp_magic.run import Options, Run, Runs
from ddp_magic.tables import Status

RANK_NAMES = frozenset({"rank", "local_rank", "world_size", "device"})
DEFAULT_CPU_RANKS = 2


def _ranks_wanted(text: str) -> int | str:
    if text in ("gpu", "cpu", "auto"):
        return text
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of ranks (1, 2, ...; gpu, cpu, auto)"
        )
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _rank_set(text: str) -> frozenset[int]:
    ranks: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of ranks (such as 0,2-3)")
        ranks.update(range(int(first), int(last or first) + 1))
    return frozenset(ranks)


@magics_class
class DDPMagics(Magics):
    """`%%ddp` and the line magics beside it."""

    preload = Union(
        [Bool(), List(Unicode())],
        default_value=True,
        help="Keep a process with the notebook's libraries imported, from which ranks are forked. "
        "A list names libraries to import beside those that the notebook uses; False: each rank "
        "imports for itself, as with torchrun.",
    ).tag(config=True)

    def __init__(self, shell: InteractiveShell) -> None:
        """Begin without a run, and start the forkserver in the background."""
        super().__init__(shell, parent=shell)
        self.runs = Runs()
        self.forkserver = Forkserver(fallback=Torchrun())
        self._raw_cell = ""
        self._apply_preload()

    def note_cell(self, info: ExecutionInfo) -> None:
        """Remember the cell as typed (IPython's pre_run_cell): the magic gets only its body."""
        self._raw_cell = info.raw_cell or ""

    @observe("preload")
    def _preload_changed(self, _change: object) -> None:
        self.forkserver.close()
        self.forkserver = Forkserver(fallback=Torchrun())
        self._apply_preload()

    def _apply_preload(self) -> None:
        if sys.platform == "win32":
            return
        if self.preload is False:
            self.forkserver.close()
            return
        if isinstance(self.preload, list):
            self.forkserver.want(self.preload)
        self.forkserver.follow(sys.modules)

    def follow_notebook(self, *_: object) -> None:
        """Let the forkserver keep up (IPython's post_run_cell)."""
        self.forkserver.follow(sys.modules)

    def close(self) -> None:
        """End the forkserver."""
        self.forkserver.close()

    @magic_arguments.magic_arguments(name="%ddp")
    @magic_arguments.argument(
        "-n",
        "--nproc-per-node",
        type=_ranks_wanted,
        metavar="N",
        help="ranks on this machine: a number, or torchrun's gpu, cpu, auto. Default: one for "
        f"each chosen GPU; without a GPU, {DEFAULT_CPU_RANKS}.",
    )
    @magic_arguments.argument(
        "-g",
        "--gpus",
        metavar="LIST",
        help="GPUs: numbers such as 0,2 (relative to CUDA_VISIBLE_DEVICES) or UUIDs; "
        "none for the CPU. Default: all.",
    )
    @magic_arguments.argument(
        "--backend",
        help="of the process group. Default: cpu:gloo,cuda:nccl with GPUs, else gloo.",
    )
    @magic_arguments.argument(
        "--timeout", type=_seconds, metavar="S", help="of collectives, seconds."
    )
    @magic_arguments.argument(
        "--time-limit", type=_seconds, metavar="S", help="of the whole run, seconds."
    )
    @magic_arguments.argument(
        "--no-init", action="store_true", help="do not initialize a process group."
    )
    @magic_arguments.argument(
        "--show",
        type=_rank_set,
        metavar="RANKS",
        help="ranks whose output is shown, such as 0,2-3 (errors always are). Default: all.",
    )
    @magic_arguments.argument(
        "--seed", type=int, metavar="S", help="of Python, NumPy and torch, the same on all ranks."
    )
    @magic_arguments.argument(
        "--cold",
        action="store_true",
        help="start by plain torch.distributed.run: nothing preloaded, each rank imports for "
        "itself.",
    )
    @magic_arguments.argument(
        "--no-raise-error", action="store_true", help="a failed run does not fail the cell."
    )
    @magic_arguments.argument(
        "-h", "--help", action="store_true", help="show this help; nothing is run."
    )
    @line_cell_magic
    def ddp(self, line: str, body: str | None = None) -> None:
        """Run the cell as a distributed PyTorch program, one process per rank.

        In the cell `rank`, `local_rank`, `world_size` and `device` are there, the process group is
        initialized, and so are the names of ddp_magic.prelude. What follows `--` on the line is
        the cell's sys.argv[1:].
        """
        args, argv = _parse(self.ddp, line)
        if args.help or body is None:
            print(self.ddp.__doc__)  # noqa: T201 -- the answer
            return
        if not body.strip():
            raise UsageError("%%ddp: the cell is empty")
        options = _options(args, argv)
        run = self._make_run(body, options)
        self.runs.add(run)
        engine = Torchrun() if args.cold else self.forkserver
        run.execute(CellScreen(self.shell), engine, list(sys.path))
        self.forkserver.want(run.imported)
        self._raise(run, quietly=args.no_raise_error)

    def _make_run(self, body: str, options: Options) -> Run:
        """Compile the cell here, where a SyntaxError costs nothing, and make its run."""
        shell = self.shell
        raw = self._raw_cell if body.strip() in self._raw_cell else "%%ddp\n" + body
        number = _execution_count(shell)
        ready = cell.prepare(
            body,
            above=cell.lines_above(raw, body),
            filename=shell.compile.get_code_name(raw, raw, number or 0),
            transformer=cell.transformer_like(shell.input_transformer_manager),
        )
        return Run(
            ready,
            options,
            execution_count=number,
            prelude=(ready.reads & set(prelude.__all__)) - RANK_NAMES,
            notebook=set(shell.user_ns) - set(shell.user_ns_hidden),
            notebook_shell={
                "colors": str(shell.colors),
                "xmode": str(shell.InteractiveTB.mode),
                "ast_node_interactivity": str(shell.ast_node_interactivity),
            },
        )

    def _raise(self, run: Run, *, quietly: bool) -> None:
        if run.error is None:
            return
        if not quietly or isinstance(run.error, KeyboardInterrupt):
            raise run.error
        print("\n".join(run.error._render_traceback_()))  # noqa: T201 -- IPython's own name

    @magic_arguments.magic_arguments()
    @magic_arguments.argument("run", nargs="?", help="a run's id, or its end. Default: all runs.")
    @magic_arguments.argument("-h", "--help", action="store_true", help="show this help.")
    @line_magic
    def ddp_status(self, line: str) -> Status | None:
        """Show the forkserver, and every run, newest first.

        Of each run: state, ranks, pid, device, cell line, time, memory.
        """
        args = magic_arguments.parse_argstring(self.ddp_status, line)
        if args.help:
            print(self.ddp_status.__doc__)  # noqa: T201 -- the answer
            return None
        if args.run is None:
            return Status(list(self.runs), self.forkserver.describe())
        run = self.runs.find(args.run)
        if run is None:
            raise UsageError(f"%ddp_status: there is no run {args.run!r}")
        return Status([run])


def _parse(magic: Any, line: str) -> tuple[argparse.Namespace, tuple[str, ...]]:  # noqa: ANN401
    """Parse the magic's line; what follows `--` is the cell's own."""
    words = line.split()
    own, argv = line, ""
    if "--" in words:
        own, _, argv = (" " + line + " ").partition(" -- ")
    try:
        arguments = tuple(shlex.split(argv))
    except ValueError as error:
        raise UsageError(f"%%ddp: {error} in what follows --") from error
    return magic_arguments.parse_argstring(magic, own), arguments


def _options(args: argparse.Namespace, argv: tuple[str, ...]) -> Options:
    """Check the options against the machine.

    Raises:
        UsageError: They cannot be had here.
    """
    if sys.platform == "win32":
        raise UsageError("%%ddp: Windows cannot fork: run the notebook's server inside WSL")
    try:
        gpus = devices.choose(devices.visible_gpus(os.environ), args.gpus)
    except ValueError as error:
        raise UsageError(f"%%ddp: {error}") from error
    nproc = _number_of_ranks(args.nproc_per_node, len(gpus))
    uses_nccl = "nccl" in (args.backend or ("nccl" if gpus else ""))
    if uses_nccl and nproc > len(gpus):
        there = f"{len(gpus)} GPU{'s' if len(gpus) != 1 else ''}"
        raise UsageError(
            f"%%ddp: {nproc} ranks and {there}: nccl needs a GPU for each rank; "
            "lower -n, or take --backend gloo or -g none"
        )
    if args.show is not None and max(args.show) >= nproc:
        raise UsageError(f"%%ddp: --show names rank {max(args.show)}, but there are {nproc} ranks")
    return Options(
        nproc=nproc,
        device="cpu" if args.gpus == "none" else "cuda",
        visible=None if args.gpus is None else ",".join(gpu.visible for gpu in gpus),
        devices=devices.describe(gpus, nproc),
        backend=args.backend,
        timeout_s=args.timeout,
        time_limit_s=args.time_limit,
        init_process_group=not args.no_init,
        show=args.show,
        seed=args.seed,
        argv=argv,
    )


def _number_of_ranks(wanted: int | str | None, gpus: int) -> int:
    match wanted:
        case int():
            return wanted
        case None:
            return gpus or DEFAULT_CPU_RANKS
        case "gpu" if not gpus:
            raise UsageError("%%ddp: -n gpu, but there is no GPU")
        case "gpu":
            return gpus
        case "auto" if gpus:
            return gpus
        case _:
            return os.cpu_count() or 1


def _execution_count(shell: InteractiveShell) -> int | None:
    """Return n of the running cell's In[n]; the shell's own counter is at the next cell already."""
    inputs = shell.user_ns.get("In", [])
    return len(inputs) - 1 if len(inputs) > 1 else None
