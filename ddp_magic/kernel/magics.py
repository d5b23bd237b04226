"""The magics: parse the line, hand over, raise what went wrong."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from IPython.core import magic_arguments
from IPython.core.error import UsageError
from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class
from traitlets import Bool, List, Unicode, Union, observe

from ddp_magic.display.screen import CellScreen
from ddp_magic.display.status import Status
from ddp_magic.errors import (
    CellSyntaxError,
    DDPMagicError,
    RunInterrupted,
    WorkerError,
    WorkerLostError,
)
from ddp_magic.kernel import cell, controller, pull
from ddp_magic.kernel.capture import Notebook
from ddp_magic.kernel.controller import Controller
from ddp_magic.kernel.interrupts import without_frames
from ddp_magic.kernel.options import DEFAULT_CPU_RANKS, names_to_take, options_of
from ddp_magic.kernel.run import Options, Run, interrupted_words


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


def _names(text: str) -> frozenset[str]:
    try:
        return names_to_take(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _pulls(text: str) -> tuple[pull.Pull, ...]:
    try:
        return pull.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _name(text: str) -> str:
    if not text.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is no name")
    return text


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
        notebook = Notebook(
            shell.user_ns,
            shell.user_ns_hidden,
            cells=lambda: getattr(shell.compile, "_filename_map", {}),
        )
        # IPython's own magics in whose place ours stand.
        before = shell.magics_manager.magics
        self.replaced = {
            kind: {n: before[kind][n] for n in names if n in before[kind]}
            for kind, names in self.magics.items()
        }
        self.controller = Controller(notebook)
        controller.current = self.controller
        self._raw_cell = ""
        self._apply_preload()

    def note_cell(self, info: ExecutionInfo) -> None:
        """Remember the cell as typed (IPython's pre_run_cell): the magic gets only its body."""
        self._raw_cell = info.raw_cell or ""
        self.controller.forkserver.begin_cell(sys.modules, self._raw_cell)

    @observe("preload")
    def _preload_changed(self, _change: object) -> None:
        self._apply_preload()

    def _apply_preload(self) -> None:
        self.controller.preload(self.preload)

    def follow_notebook(self, *_: object) -> None:
        """Keep up with the notebook (IPython's post_run_cell)."""
        self.controller.follow()

    def close(self) -> None:
        """End the sessions and the forkserver."""
        controller.current = None
        self.controller.close()

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
        "-s",
        "--session",
        type=_name,
        metavar="NAME",
        help="run in ranks that are kept: the first such cell starts them, later ones find their "
        "variables. %%ddp_stop NAME ends them.",
    )
    @magic_arguments.argument(
        "--capture",
        type=_names,
        metavar="NAMES",
        help="take only these of the notebook's names along (a,b), or none. Default: all that "
        "the cell reads.",
    )
    @magic_arguments.argument(
        "--pull",
        type=_pulls,
        default=(),
        metavar="NAMES",
        help="bring these back to the notebook afterwards: a,b from rank 0, a@all as a list of "
        "all ranks' values, a@2 from rank 2; dotted names too.",
    )
    @magic_arguments.argument(
        "-o", "--out", type=_name, metavar="NAME", help="bind the run to this name."
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
        if (error := self._run(args, argv, body)) is not None:
            # From here: a frame that a traceback keeps must not keep the run's results alive.
            raise error

    def _run(
        self, args: argparse.Namespace, argv: tuple[str, ...], body: str
    ) -> DDPMagicError | RunInterrupted | None:
        """Run a cell; return the error that is to fail the notebook's cell."""
        run: Run | None = None
        with without_frames(lambda: interrupted_words(run)):
            try:
                options = self.controller.join(args, argv) or options_of(args, argv)
            except ValueError as error:
                raise UsageError(f"%%ddp: {error}") from error
            run = self._make_run(body, options, args.capture)
            self.controller.execute(run, CellScreen(self.shell), cold=args.cold)
            self.shell.user_ns.update(run.results)
            if args.out is not None:
                self.shell.user_ns[args.out] = run
            if run.error is None:
                return None
            if args.no_raise_error and not isinstance(run.error, KeyboardInterrupt):
                print("\n".join(run.error._render_traceback_()))  # noqa: T201 -- IPython's own name
                return None
            return run.error

    def _make_run(self, body: str, options: Options, only: frozenset[str] | None) -> Run:
        """Compile the cell here, where a SyntaxError costs nothing, and make its run."""
        shell = self.shell
        raw = self._raw_cell if body.strip() in self._raw_cell else "%%ddp\n" + body
        number = _execution_count(shell)
        try:
            ready = cell.prepare(
                body,
                above=cell.lines_above(raw, body),
                filename=shell.compile.get_code_name(raw, raw, number or 0),
                transformer=cell.transformer_like(shell.input_transformer_manager),
            )
        except SyntaxError as error:
            lines = shell.SyntaxTB.structured_traceback(type(error), error, [])
            raise CellSyntaxError(error, lines) from None
        settings = {
            "colors": str(shell.colors),
            "xmode": str(shell.InteractiveTB.mode),
            "ast_node_interactivity": str(shell.ast_node_interactivity),
        }
        return self.controller.make(ready, options, only, execution_count=number, settings=settings)

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
            return Status(
                list(self.controller.runs),
                self.controller.forkserver.describe(),
                [session.status() for session in self.controller.sessions],
            )
        run = self.controller.runs.find(args.run)
        if run is None:
            raise UsageError(f"%ddp_status: there is no run {args.run!r}")
        return Status([run])

    @magic_arguments.magic_arguments()
    @magic_arguments.argument("session", nargs="?", help="a session's name.")
    @magic_arguments.argument("--all", action="store_true", help="all sessions.")
    @magic_arguments.argument("-h", "--help", action="store_true", help="show this help.")
    @line_magic
    def ddp_stop(self, line: str) -> None:
        """End a session: ask its ranks, wait for their exit handlers, kill. Says what has ended."""
        args = magic_arguments.parse_argstring(self.ddp_stop, line)
        if args.help:
            print(self.ddp_stop.__doc__)  # noqa: T201 -- the answer
            return
        with without_frames(lambda: "%ddp_stop was interrupted; what had not ended was killed"):
            print("\n".join(self._end_sessions(args)))  # noqa: T201 -- the answer

    def _end_sessions(self, args: argparse.Namespace) -> list[str]:
        sessions = self.controller.sessions
        if args.all:
            return sessions.end_all() or ["there is no session"]
        if args.session is None:
            raise UsageError("%ddp_stop: name a session, or --all")
        if sessions.get(args.session) is None:
            names = ", ".join(session.name for session in sessions) or "none"
            raise UsageError(f"%ddp_stop: there is no session {args.session!r} (there: {names})")
        return [sessions.end(args.session)]

    @line_cell_magic
    def debug(self, line: str, body: str | None = None) -> Any:  # noqa: ANN401 -- IPython's own
        """IPython's %debug, which says so where the last failure was in a rank."""
        error = getattr(sys, "last_value", None)
        if not line.strip() and body is None and isinstance(error, WorkerError | WorkerLostError):
            raise UsageError(
                f"%debug: the failure was in rank {error.rank}, a process of its own that has "
                "ended: print there what you need to know, or run the cell without %%ddp"
            )
        own = self.replaced["line" if body is None else "cell"]["debug"]
        return own(line) if body is None else own(line, body)


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


def _execution_count(shell: InteractiveShell) -> int | None:
    """Return n of the running cell's In[n]; the shell's own counter is at the next cell already."""
    inputs = shell.user_ns.get("In", [])
    return len(inputs) - 1 if len(inputs) > 1 else None
