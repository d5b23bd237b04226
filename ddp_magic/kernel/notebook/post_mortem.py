"""`%pdb on`: IPython's debugger opens where a cell failed, which is in a rank and not here.

It counts as `--debug`, whose half in a rank is `worker.console.post_mortem`.
"""

from __future__ import annotations

from types import SimpleNamespace, TracebackType
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from ddp_magic.display.question_box import box_of
from ddp_magic.errors import DDPMagicError, RunInterrupted

_OF_RUNS = (DDPMagicError, RunInterrupted)


def wants_debugger(asked: SimpleNamespace, shell: InteractiveShell | None) -> bool:
    """Return whether a rank that raises stops in the debugger.

    Without a word in the options, it does with `%pdb on`, if a person can answer.
    """
    if "debug" in asked.given or asked.bg or asked.detach:
        return bool(asked.debug)
    return shell is not None and bool(shell.call_pdb) and not box_of(shell).problem


class WithoutDebugger:
    """Shows errors of runs without a debugger, which would open in a frame of ddp_magic.

    With `%pdb on` the rank that failed was in one. This is IPython's own way to show some errors
    otherwise (`set_custom_exc`); what another extension shows so goes on.

    Args:
        shell: The notebook's.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._before = shell.custom_exceptions, shell.CustomTB
        shell.set_custom_exc((*_OF_RUNS, *shell.custom_exceptions), self._show)

    def _show(
        self,
        shell: InteractiveShell,
        etype: type[BaseException],
        value: BaseException,
        traceback: TracebackType,
        tb_offset: int | None = None,
    ) -> Any:  # noqa: ANN401 -- IPython's own
        if not isinstance(value, _OF_RUNS):
            return self._before[1](etype, value, traceback, tb_offset)
        wanted, shell.call_pdb = shell.call_pdb, False
        try:
            shell.showtraceback(
                (etype, value, traceback), tb_offset=tb_offset, running_compiled_code=True
            )
        finally:
            shell.call_pdb = wanted
        return None

    def close(self) -> None:
        """Show errors as before, unless another extension has said meanwhile how."""
        if self._shell.custom_exceptions[: len(_OF_RUNS)] == _OF_RUNS:
            self._shell.custom_exceptions, self._shell.CustomTB = self._before
