"""The magics: parse the line, hand over, raise what went wrong."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand
from traitlets import Bool, Float, List, Unicode, Union, observe

from ddp_magic.display.diagnosis.hangs import HANG_S
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.question_box import box_of
from ddp_magic.display.replay import replay
from ddp_magic.display.screen import CellScreen
from ddp_magic.display.status import Status
from ddp_magic.errors import (
    CellSyntaxError,
    DDPMagicError,
    RunInterrupted,
    WorkerError,
    WorkerLostError,
)
from ddp_magic.kernel import cell, controller
from ddp_magic.kernel.background.run import BackgroundRun
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.completion import Completion
from ddp_magic.kernel.controller import Controller
from ddp_magic.kernel.interrupts import interrupted_words, without_frames
from ddp_magic.kernel.options import expansion
from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.options.declaration import (
    ATTACH_OPTIONS,
    LOGS_OPTIONS,
    OPTIONS,
    SHOW_OPTIONS,
    STATUS_OPTIONS,
    STOP_OPTIONS,
    WAIT_OPTIONS,
    Option,
    OptionError,
    spelling,
)
from ddp_magic.kernel.options.defaults import OptionDefaults, in_force, with_defaults
from ddp_magic.kernel.options.help import (
    ATTACH_HELP,
    DDP_HELP,
    LOGS_HELP,
    SHOW_HELP,
    STATUS_HELP,
    STOP_HELP,
    WAIT_HELP,
)
from ddp_magic.kernel.resolve import resolve
from ddp_magic.kernel.run import Run
from ddp_magic.kernel.values.capture import Notebook
from ddp_magic.system.frames import warnings_without_ours


def documented(text: str) -> Callable[[Any], Any]:
    """Give a magic its docstring, which `?` shows, from the declaration of its options."""

    def decorate(magic: Any) -> Any:  # noqa: ANN401 -- any function
        magic.__doc__ = text
        return magic

    return decorate


def keep_empty_body(lines: list[str]) -> list[str]:
    """Give `%%ddp` without a body an empty line: IPython refuses a cell magic that has none.

    So `%%ddp --help` alone in a cell reaches the magic.
    """
    alone = len(lines) == 1 and re.match(r"%%ddp(\s|$)", lines[0])
    return [lines[0].rstrip("\n") + "\n", "\n"] if alone else lines


@magics_class
class DDPMagics(Magics, OptionDefaults):
    """`%%ddp` and the line magics beside it."""

    preload = Union(
        [Bool(), List(Unicode())],
        default_value=True,
        help="Keep a process with the notebook's libraries imported, from which ranks are forked. "
        "A list names libraries to import in addition to those that the notebook uses; False: "
        "each rank imports for itself, as with torchrun.",
    ).tag(config=True)

    hang_s = Float(
        HANG_S,
        help="Explain a wait of ranks for other ranks once it has lasted that long, in seconds.",
    ).tag(config=True)

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell, parent=shell)
        notebook = Notebook(
            shell.user_ns,
            shell.user_ns_hidden,
            cells=lambda: getattr(shell.compile, "_filename_map", {}),
        )
        # IPython's own magics that ours replace.
        before = shell.magics_manager.magics
        self.replaced = {
            kind: {n: before[kind][n] for n in names if n in before[kind]}
            for kind, names in self.magics.items()
        }
        self.controller = Controller(notebook)
        controller.current = self.controller
        self._completion = Completion(shell, self.controller)
        # Before IPython's own, which makes a call of the magic out of the cell.
        shell.input_transformer_manager.line_transforms.insert(0, keep_empty_body)
        self._raw_cell = ""
        self._apply_preload()
        self.controller.hang_s = self.hang_s

    def note_cell(self, info: ExecutionInfo) -> None:
        """Remember the cell as typed (IPython's pre_run_cell): the magic gets only its body."""
        self._raw_cell = info.raw_cell or ""
        self.controller.forkserver.begin_cell(sys.modules, self._raw_cell)

    @observe("preload")
    def _preload_changed(self, _change: object) -> None:
        self._apply_preload()

    @observe("hang_s")
    def _hang_s_changed(self, _change: object) -> None:
        self.controller.hang_s = self.hang_s

    def _apply_preload(self) -> None:
        self.controller.preload(self.preload)

    def follow_notebook(self, *_: object) -> None:
        """Keep up with the notebook (IPython's post_run_cell)."""
        self.controller.follow()

    def close(self) -> None:
        """End the sessions and the forkserver; unplug from IPython."""
        controller.current = None
        self._completion.close()
        transforms = self.shell.input_transformer_manager.line_transforms
        if keep_empty_body in transforms:
            transforms.remove(keep_empty_body)
        self.controller.close()

    @line_cell_magic
    @no_var_expand  # `expansion` does it
    @documented(DDP_HELP)
    def ddp(self, line: str, body: str | None = None) -> None:
        """Run a cell."""
        if body is None and line.strip() not in ("", "-h", "--help"):
            raise UsageError("%ddp runs a cell: write %%ddp, in the first line of the cell")
        args = self._parse_expanded(line, sys._getframe(2).f_locals)
        if args.help or not (line + (body or "")).strip():
            print(DDP_HELP)  # noqa: T201 -- the answer
            return
        if body is None or not body.strip():
            raise UsageError(
                "%%ddp: the cell is empty: write the program below this line "
                "(%%ddp --help lists the options)"
            )
        if (error := self._run(args, body)) is not None:
            # From here: a frame that a traceback keeps must not keep the run's results alive.
            raise error

    def _parse_expanded(self, line: str, local: Mapping[str, Any]) -> SimpleNamespace:
        """Parse the line with the names that IPython would expand.

        Args:
            line: The line as typed.
            local: Names of the caller of `run_cell_magic`; they hide the notebook's.
        """
        names = {**self.shell.user_ns, **local}
        return _parse("%%ddp", line, OPTIONS, lambda text: expansion.split(text, names))

    def _run(self, args: SimpleNamespace, body: str) -> DDPMagicError | RunInterrupted | None:
        """Run a cell; return the error that fails the notebook's cell, if any."""
        run: Run | None = None
        args = with_defaults(args, self)
        with (
            without_frames(lambda: interrupted_words(run)),
            warnings_without_ours(),
            self.controller.sessions.claim(args.session),
        ):
            try:
                options = self.controller.join(args) or resolve(args)
            except OptionError as error:
                problem = error.problem + in_force(args, error)
                raise UsageError(f"%%ddp {spelling(error.name)}: {problem}") from error
            except ValueError as error:
                raise UsageError(f"%%ddp: {error}") from error
            with options.gpu_locks.released_on_error():
                ready = self._prepare(body)
                if args.bg or args.detach:
                    started = self.controller.start_in_background(ready, options, args)
                    self._show_in_background(started)
                    return None
                run = self.controller.make(ready, options, args.capture)
            screen = CellScreen(self.shell, outputs=self._outputs_of(body))
            box = box_of(self.shell)
            self.controller.execute(run, screen, cold=args.cold, box=box)
            self.shell.user_ns.update(run.results)
            if args.out is not None:
                self.shell.user_ns[args.out] = run
            if run.error is None:
                return None
            if args.no_raise_error and not isinstance(run.error, KeyboardInterrupt):
                print("\n".join(run.error._render_traceback_()))  # noqa: T201 -- IPython's own name
                return None
            return run.error

    def _show_in_background(self, run: BackgroundRun) -> None:
        if run.background.out:
            self.shell.user_ns[run.background.out] = run
        run.show_from_now_on(Outputs(self.shell, stays=True), says=run.announcement())

    def _outputs_of(self, body: str) -> Outputs:
        """Return the outputs of the notebook's cell, which may have other code too."""
        is_whole = self._raw_cell.rstrip().endswith(body.rstrip())  # not a call of run_cell_magic
        return Outputs(self.shell, owns_cell=is_whole)

    def _prepare(self, body: str) -> Cell:
        """Compile the cell here, where a SyntaxError costs nothing."""
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
        return dataclasses.replace(ready, number=number, settings=settings)

    @line_magic
    @documented(STATUS_HELP)
    def ddp_status(self, line: str) -> Status | None:
        """Show the runs."""
        args = _parse("%ddp_status", line, STATUS_OPTIONS)
        if args.help:
            print(STATUS_HELP)  # noqa: T201 -- the answer
            return None
        if args.stacks:
            print(self._answer(["stacks", *filter(None, [args.run])]))  # noqa: T201 -- the answer
            return None
        with _usage_errors("%ddp_status"):
            return self.controller.status(args.run)

    @line_magic
    @documented(SHOW_HELP)
    def ddp_show(self, line: str) -> None:
        """Show a run again."""
        args = _parse("%ddp_show", line, SHOW_OPTIONS)
        if args.help:
            print(SHOW_HELP)  # noqa: T201 -- the answer
            return
        with _usage_errors("%ddp_show"):
            replay(self.controller.past.find(args.run), self.shell)

    @line_magic
    @documented(LOGS_HELP)
    def ddp_logs(self, line: str) -> None:
        """Print what the ranks of a run wrote."""
        args = _parse("%ddp_logs", line, LOGS_OPTIONS)
        if args.help:
            print(LOGS_HELP)  # noqa: T201 -- the answer
            return
        with _usage_errors("%ddp_logs"):
            text = "\n".join(self.controller.past.logs(args.run, args.rank, args.lines))
        print(text, end="\n" if text else "")  # noqa: T201 -- the answer

    @line_magic
    @documented(WAIT_HELP)
    def ddp_wait(self, line: str) -> BackgroundRun | None:
        """Follow a background run of this notebook."""
        return self._follow("%ddp_wait", line, WAIT_OPTIONS, WAIT_HELP)

    @line_magic
    @documented(ATTACH_HELP)
    def ddp_attach(self, line: str) -> BackgroundRun | None:
        """Follow a background run of any notebook."""
        return self._follow("%ddp_attach", line, ATTACH_OPTIONS, ATTACH_HELP)

    def _follow(
        self, magic: str, line: str, options: tuple[Option, ...], text: str
    ) -> BackgroundRun | None:
        args = _parse(magic, line, options)
        if args.help:
            print(text)  # noqa: T201 -- the answer
            return None
        with _usage_errors(magic):
            run = self.controller.background.choose(args.run, of_any=magic == "%ddp_attach")
        goes_on = f"stopped following run {run.id}, which goes on; %ddp_stop {run.id} ends it"
        with without_frames(lambda: goes_on):
            run.follow(Outputs(self.shell))
        run = run.with_results(self.shell.user_ns)
        if not run.background.call:
            self.shell.user_ns.update(run.results)
        if run.background.out:
            self.shell.user_ns[run.background.out] = run
        if (error := run.error) is None:
            return run
        if run.background.raises or isinstance(error, KeyboardInterrupt):
            del run  # a frame that a traceback keeps must not keep the run's results alive
            raise error
        print("\n".join(error._render_traceback_()))  # noqa: T201 -- IPython's own name
        return run

    def _answer(self, words: list[str]) -> str:
        with _usage_errors("%ddp_status"):
            return self.controller.answers.answer(words)

    @line_magic
    @documented(STOP_HELP)
    def ddp_stop(self, line: str) -> None:
        """End sessions and runs."""
        args = _parse("%ddp_stop", line, STOP_OPTIONS)
        if args.help:
            print(STOP_HELP)  # noqa: T201 -- the answer
            return
        if args.all and args.session is not None:
            raise UsageError("%ddp_stop: give a session or --all, not both")
        with (
            without_frames(lambda: "%ddp_stop was interrupted; what had not ended was killed"),
            _usage_errors("%ddp_stop"),
        ):
            if args.all:
                ended = self.controller.stop_all() or ["there is no session and no background run"]
            else:
                ended = [self.controller.stop(args.session)]
            print("\n".join(ended))  # noqa: T201 -- the answer

    @line_cell_magic
    def debug(self, line: str, body: str | None = None) -> Any:  # noqa: ANN401 -- IPython's own
        """IPython's %debug; it refuses a failure that was in a rank, and says why."""
        error = getattr(sys, "last_value", None)
        if not line.strip() and body is None and isinstance(error, WorkerError | WorkerLostError):
            raise UsageError(
                f"%debug: the failure was in rank {error.rank}, a process of its own that has "
                "ended: print there what you need to know, or run the cell without %%ddp"
            )
        own = self.replaced["line" if body is None else "cell"]["debug"]
        return own(line) if body is None else own(line, body)


@contextmanager
def _usage_errors(magic: str) -> Iterator[None]:
    """Raise a ValueError of the body as the magic's UsageError."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{magic}: {error}") from error


def _parse(
    magic: str,
    line: str,
    options: tuple[Option, ...],
    split: Callable[[str], list[str]] = shlex.split,
) -> SimpleNamespace:
    try:
        return parse_line(magic, line, options, split)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _execution_count(shell: InteractiveShell) -> int | None:
    """Return n of the running cell's In[n]; the shell's own counter is at the next cell already."""
    inputs = shell.user_ns.get("In")
    # The name may be the user's own: `In, Out = 3, 5`.
    return len(inputs) - 1 if isinstance(inputs, list) and len(inputs) > 1 else None
