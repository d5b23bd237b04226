"""What an option of a magic is: its name, its spellings, what it reads, what it says.

A new option needs a declaration (`declaration`, or `line_magic_options` for a line magic), and the
code that implements it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ddp_magic.kernel.options import values as read

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
        joint: What stands between the parts of its value: a comma, or a space, which needs quotes.
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
    joint: str = ""

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
