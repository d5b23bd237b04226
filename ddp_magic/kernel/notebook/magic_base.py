"""What all magics share: they parse a line, refuse it with a UsageError, and go when unloaded."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics

from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.options.option import Option


class OurMagics(Magics):
    """Magics in place of IPython's own of the same names, which come back when they go."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell, parent=shell)
        # Found, not read from its table: there IPython may have a placeholder, which looks up
        # the magic by its name when it is called, and would find ours.
        self._replaced = {
            kind: {n: found for n in names if (found := shell.find_magic(n, kind)) is not None}
            for kind, names in self.magics.items()
        }

    def replaced(self, kind: str, name: str) -> Callable[..., Any]:
        """Return IPython's own "line" or "cell" magic of this name."""
        own: Callable[..., Any] = self._replaced[kind][name]
        return own

    def unregister(self) -> None:
        """Take these magics away from the shell."""
        manager = self.shell.magics_manager
        manager.registry.pop(type(self).__name__, None)
        self.shell.configurables.remove(self)
        for kind, names in self.magics.items():
            for name in names:
                manager.magics[kind].pop(name, None)
            manager.magics[kind].update(self._replaced[kind])


def documented(text: str) -> Callable[[Any], Any]:
    """Give a magic its docstring, which `?` shows, from the declaration of its options."""

    def decorate(magic: Any) -> Any:  # noqa: ANN401 -- any function
        magic.__doc__ = text
        return magic

    return decorate


@contextmanager
def usage_errors(magic: str) -> Iterator[None]:
    """Raise a ValueError of the body as the magic's UsageError."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{magic}: {error}") from error


def parse(
    magic: str,
    line: str,
    options: tuple[Option, ...],
    split: Callable[[str], list[str]] = shlex.split,
) -> SimpleNamespace:
    """Return the values of a line's options.

    Args:
        magic: What messages call the magic.
        line: The line below its name.
        options: Those that it has.
        split: Splits a line into words.

    Raises:
        UsageError: The line has others, or other values.
    """
    try:
        return parse_line(magic, line, options, split)
    except ValueError as error:
        raise UsageError(str(error)) from error
