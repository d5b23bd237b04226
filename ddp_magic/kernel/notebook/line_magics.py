"""The line magics beside `%%ddp`: they show, follow and end runs and sessions."""

from __future__ import annotations

import sys
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import line_cell_magic, line_magic, magics_class

from ddp_magic.display.journal.replay import replay
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.status import Status
from ddp_magic.errors import DDPMagicError, RunInterrupted, WorkerError, WorkerLostError
from ddp_magic.kernel.background.run import BackgroundRun
from ddp_magic.kernel.controller import Controller
from ddp_magic.kernel.interrupts import without_frames
from ddp_magic.kernel.notebook.magic_base import OurMagics, documented, parse, usage_errors
from ddp_magic.kernel.notebook.typed_cells import TypedCells
from ddp_magic.kernel.options.help import (
    ATTACH_HELP,
    LOGS_HELP,
    SHOW_HELP,
    STATUS_HELP,
    STOP_HELP,
    WAIT_HELP,
)
from ddp_magic.kernel.options.line_magic_options import (
    ATTACH_OPTIONS,
    LOGS_OPTIONS,
    SHOW_OPTIONS,
    STATUS_OPTIONS,
    STOP_OPTIONS,
    WAIT_OPTIONS,
)
from ddp_magic.kernel.options.option import Option


@magics_class
class LineMagics(OurMagics):
    """The line magics beside `%%ddp`.

    Args:
        shell: The notebook's.
        controller: Has the runs and sessions.
        typed: The cells that run.
    """

    def __init__(self, shell: InteractiveShell, controller: Controller, typed: TypedCells) -> None:
        super().__init__(shell)
        self.controller = controller
        self._typed = typed

    @line_magic
    @documented(STATUS_HELP)
    def ddp_status(self, line: str) -> Status | None:
        """Show the runs."""
        args = parse("%ddp_status", line, STATUS_OPTIONS)
        if args.help:
            print(STATUS_HELP)  # noqa: T201 -- the answer
            return None
        if args.stacks:
            with usage_errors("%ddp_status"):
                print(self.controller.asked.stacks(args.run))  # noqa: T201 -- the answer
            return None
        with usage_errors("%ddp_status"):
            return self.controller.asked.status(args.run)

    @line_magic
    @documented(SHOW_HELP)
    def ddp_show(self, line: str) -> None:
        """Show a run again."""
        args = parse("%ddp_show", line, SHOW_OPTIONS)
        if args.help:
            print(SHOW_HELP)  # noqa: T201 -- the answer
            return
        with usage_errors("%ddp_show"):
            replay(self.controller.past.find(args.run), self.shell, args.rank)

    @line_magic
    @documented(LOGS_HELP)
    def ddp_logs(self, line: str) -> None:
        """Print what the ranks of a run wrote."""
        args = parse("%ddp_logs", line, LOGS_OPTIONS)
        if args.help:
            print(LOGS_HELP)  # noqa: T201 -- the answer
            return
        with usage_errors("%ddp_logs"):
            which = [] if args.run else [self.controller.past.title_of_logs()]
            text = "\n".join([*which, *self.controller.past.logs(args.run, args.rank, args.lines)])
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
        args = parse(magic, line, options)
        if args.help:
            print(text)  # noqa: T201 -- the answer
            return None
        with usage_errors(magic):
            run = self.controller.background.choose(args.run, of_any=magic == "%ddp_attach")
        goes_on = f"stopped following run {run.id}, which goes on; %ddp_stop {run.id} ends it"
        with without_frames(lambda: goes_on):
            run.follow(Outputs(self.shell, owns_cell=self._typed.has_only(f"{magic} {line}")))
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

    @line_magic
    @documented(STOP_HELP)
    def ddp_stop(self, line: str) -> None:
        """End sessions and runs."""
        args = parse("%ddp_stop", line, STOP_OPTIONS)
        if args.help:
            print(STOP_HELP)  # noqa: T201 -- the answer
            return
        if args.all and args.session is not None:
            raise UsageError("%ddp_stop: give a session or --all, not both")
        with (
            without_frames(lambda: "%ddp_stop was interrupted; what had not ended was killed"),
            usage_errors("%ddp_stop"),
        ):
            if args.all:
                ended = self.controller.asked.stop_all()
            else:
                ended = [self.controller.asked.stop(args.session)]
            print("\n".join(ended))  # noqa: T201 -- the answer

    @line_cell_magic
    def debug(self, line: str, body: str | None = None) -> Any:  # noqa: ANN401 -- IPython's own
        """IPython's %debug; it refuses an error of a run, which has no frame of a person's."""
        error = getattr(sys, "last_value", None)
        is_post_mortem = body is None and not line.strip()
        if is_post_mortem and isinstance(error, WorkerError | WorkerLostError):
            raise UsageError(
                f"%debug: the failure was in rank {error.rank}, a process of its own that has "
                "ended: run the cell with --debug, or once more after %pdb on"
            )
        if is_post_mortem and isinstance(error, DDPMagicError | RunInterrupted):
            raise UsageError(
                "%debug: no code of the notebook raised the last error; its message says what to do"
            )
        own = self.replaced("line" if body is None else "cell", "debug")
        return own(line) if body is None else own(line, body)
