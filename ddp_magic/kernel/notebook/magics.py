"""`%%ddp`: parse the line, hand over, raise what went wrong."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell
from IPython.core.magic import line_cell_magic, line_magic, magics_class, no_var_expand
from traitlets import Bool, Float, List, Unicode, Union

from ddp_magic.display.diagnosis.hangs import HANG_S
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.question_box import box_of
from ddp_magic.display.screen import CellScreen
from ddp_magic.errors import CellSyntaxError, DDPMagicError, RunInterrupted
from ddp_magic.kernel import cell, controller
from ddp_magic.kernel.background.run import BackgroundRun
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.controller import Controller
from ddp_magic.kernel.execution.run import Run
from ddp_magic.kernel.interrupts import interrupted_words, without_frames
from ddp_magic.kernel.notebook.completion import Completion
from ddp_magic.kernel.notebook.line_magics import LineMagics
from ddp_magic.kernel.notebook.magic_base import OurMagics, documented, parse
from ddp_magic.kernel.notebook.post_mortem import WithoutDebugger, wants_debugger
from ddp_magic.kernel.notebook.typed_cells import TypedCells
from ddp_magic.kernel.options import expansion
from ddp_magic.kernel.options.configured_defaults import OptionDefaults, in_force, with_defaults
from ddp_magic.kernel.options.declaration import OPTIONS, spelling
from ddp_magic.kernel.options.help import DDP_HELP
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.resolve import resolve
from ddp_magic.kernel.values.capture import Notebook
from ddp_magic.system.tracebacks import warnings_without_ours


def begin_with_magic(lines: list[str]) -> list[str]:
    """Give IPython a cell whose first line is `%%ddp`, and that has a second one.

    Comments may stand above `%%ddp`. `%%ddp --help` alone in a cell gets an empty line, because
    IPython refuses a cell magic without a body.
    """
    code = (i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#"))
    first = next(code, 0)
    if not lines or not (match := re.match(r"%%ddp(?:\s|$)", lines[first])):
        return lines
    # After the name IPython takes a space only: no tab, no space of a web page.
    head = "%%ddp " + lines[first][match.end() :].rstrip("\n")
    return [head.rstrip(" ") + "\n", *(lines[first + 1 :] or ["\n"])]


@magics_class
class DDPMagics(OurMagics, OptionDefaults):
    """`%%ddp`, and what it sets with `%config`."""

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
        super().__init__(shell)
        notebook = Notebook(
            shell.user_ns,
            shell.user_ns_hidden,
            cells=lambda: getattr(shell.compile, "_filename_map", {}),
        )
        self.controller = Controller(notebook)
        controller.current = self.controller
        self._completion = Completion(shell, self.controller)
        # Before IPython's own, which makes a call of the magic out of the cell.
        shell.input_transformer_manager.line_transforms.insert(0, begin_with_magic)
        self.typed = TypedCells()
        self._shown_errors = WithoutDebugger(shell)
        self._set_preload()
        self._set_hang_s()
        # From now on: IPython's configuration sets them before there is a controller.
        self.observe(self._set_preload, "preload")
        self.observe(self._set_hang_s, "hang_s")

    def note_cell(self, info: ExecutionInfo) -> None:
        """Remember the cell as typed (IPython's pre_run_cell): the magic gets only its body."""
        self.typed.begin(info.raw_cell or "")
        self.controller.forkserver.begin_cell(sys.modules, self.typed.current)

    def _set_preload(self, _change: object = None) -> None:
        self.controller.preload(self.preload)

    def _set_hang_s(self, _change: object = None) -> None:
        self.controller.hang_s = self.hang_s

    def follow_notebook(self, *_: object) -> None:
        """Keep up with the notebook (IPython's post_run_cell)."""
        self.typed.end()
        self.controller.follow()

    def close(self) -> list[str]:
        """End the sessions and the forkserver; unplug from IPython. Return what ended."""
        controller.current = None
        self._shown_errors.close()
        self._completion.close()
        transforms = self.shell.input_transformer_manager.line_transforms
        if begin_with_magic in transforms:
            transforms.remove(begin_with_magic)
        return self.controller.close()

    @line_cell_magic
    @no_var_expand  # `expansion` does it
    @documented(DDP_HELP)
    def ddp(self, line: str, body: str | None = None) -> None:
        """Run a cell."""
        if body is None and line.strip() not in ("", "-h", "--help"):
            raise UsageError("%ddp runs a cell: write %%ddp, in the first line of the cell")
        with self.controller.background.noting_refusal(line):
            error = self._parse_and_run(line, body, sys._getframe(2).f_locals)
        if error is not None:
            # From here: a frame that a traceback keeps must not keep the run's results alive.
            raise error

    @line_magic("%ddp")  # what IPython looks for where `%%ddp` is not in the first line
    def ddp_below_code(self, _line: str) -> None:
        """Say where `%%ddp` belongs."""
        raise UsageError(
            "%%ddp must be the first line of its cell, below comments at most: move the code above "
            "it to another cell"
        )

    def _parse_and_run(
        self, line: str, body: str | None, local: Mapping[str, Any]
    ) -> DDPMagicError | RunInterrupted | None:
        """Run a cell; return the error that fails the notebook's cell, if any."""
        args = self._parse_expanded(line, local)
        if args.help or not (line + (body or "")).strip():
            print(DDP_HELP)  # noqa: T201 -- the answer
            return None
        if body is None or not body.strip():
            raise UsageError(
                "%%ddp: the cell is empty: write the program below this line "
                "(%%ddp --help lists the options)"
            )
        if args.write is not None:
            self._write(args, body)
            return None
        return self._run(args, body)

    def _parse_expanded(self, line: str, local: Mapping[str, Any]) -> SimpleNamespace:
        """Parse the line with the names that IPython would expand.

        Args:
            line: The line as typed.
            local: Names of the caller of `run_cell_magic`; they hide the notebook's.
        """
        names = {**self.shell.user_ns, **local}
        return parse("%%ddp", line, OPTIONS, lambda text: expansion.split(text, names))

    def _write(self, args: SimpleNamespace, body: str) -> None:
        from ddp_magic.kernel.script.write import write  # not for a cell that runs

        args = with_defaults(args, self)
        with _usage_errors(args):
            lines = write(self._prepare(body), args, self.controller.notebook, "--capture")
        print("\n".join(lines))  # noqa: T201 -- the answer

    def _run(self, args: SimpleNamespace, body: str) -> DDPMagicError | RunInterrupted | None:
        """Run a cell; return the error that fails the notebook's cell, if any."""
        run: Run | None = None
        args = with_defaults(args, self)
        args.debug = wants_debugger(args, self.shell)
        with (
            without_frames(lambda: interrupted_words(run)),
            warnings_without_ours(),
            self.controller.sessions.claim(args.session),
        ):
            with _usage_errors(args):
                options = self.controller.join(args) or resolve(args)
            with options.gpu_locks.released_on_error():
                ready = self._prepare(body)
                if args.bg or args.detach:
                    started = self.controller.start_in_background(ready, options, args)
                    self._show_in_background(started, body)
                    return None
                run = self.controller.make(ready, options, args.capture)
            outputs = Outputs(self.shell, owns_cell=self.typed.has_only(body))
            screen = CellScreen(self.shell, outputs=outputs)
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

    def _show_in_background(self, run: BackgroundRun, body: str) -> None:
        if run.background.out:
            self.shell.user_ns[run.background.out] = run
        outputs = Outputs(self.shell, stays=True, owns_cell=self.typed.has_only(body))
        run.show_from_now_on(outputs, says=run.announcement())

    def _prepare(self, body: str) -> Cell:
        """Compile the cell here, where a SyntaxError costs nothing."""
        shell = self.shell
        raw = self.typed.current if body.strip() in self.typed.current else "%%ddp\n" + body
        number = _execution_count(shell)
        try:
            ready = cell.prepare(
                body,
                above=cell.lines_above(raw, body),
                filename=lambda: str(shell.compile.get_code_name(raw, raw, number or 0)),
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


@contextmanager
def _usage_errors(args: SimpleNamespace) -> Iterator[None]:
    try:
        yield
    except OptionError as error:
        problem = error.problem + in_force(args, error)
        raise UsageError(f"%%ddp {spelling(error.name)}: {problem}") from error
    except ValueError as error:
        raise UsageError(f"%%ddp: {error}") from error


def _execution_count(shell: InteractiveShell) -> int | None:
    """Return n of the running cell's In[n]; the shell's own counter is at the next cell already."""
    inputs = shell.user_ns.get("In")
    # The name may be the user's own: `In, Out = 3, 5`.
    return len(inputs) - 1 if isinstance(inputs, list) and len(inputs) > 1 else None


def register(shell: InteractiveShell) -> None:
    """Give a notebook the magics."""
    magics = DDPMagics(shell)
    shell.register_magics(magics, LineMagics(shell, magics.controller, magics.typed))
    shell.events.register("pre_run_cell", magics.note_cell)
    shell.events.register("post_run_cell", magics.follow_notebook)


def unregister(shell: InteractiveShell) -> list[str]:
    """Take the magics away; end the sessions, the background runs and the forkserver.

    Returns:
        Messages for the user: what ended.
    """
    magics = shell.magics_manager.registry.get(DDPMagics.__name__)
    if magics is None:
        return []
    shell.events.unregister("pre_run_cell", magics.note_cell)
    shell.events.unregister("post_run_cell", magics.follow_notebook)
    ended: list[str] = magics.close()
    for ours in (magics, shell.magics_manager.registry[LineMagics.__name__]):
        ours.unregister()
    return ended
