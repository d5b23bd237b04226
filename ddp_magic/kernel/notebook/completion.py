"""TAB on the lines of the magics, for options and values, and in the body of a `%%ddp` cell.

`complete` and `complete_name` are pure; `Completion` plugs them into IPython's completer (known to
work in IPython 8.18 to 9.18), which Jupyter's kernel and the terminal share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from IPython.core.completer import SimpleCompletion, context_matcher
from IPython.core.interactiveshell import InteractiveShell

from ddp_magic.kernel.controller import Controller
from ddp_magic.kernel.options.arguments import matching
from ddp_magic.kernel.options.declaration import OPTIONS
from ddp_magic.kernel.options.line_magic_options import (
    ATTACH_OPTIONS,
    LOGS_OPTIONS,
    SHOW_OPTIONS,
    STATUS_OPTIONS,
    STOP_OPTIONS,
    WAIT_OPTIONS,
)
from ddp_magic.kernel.options.option import Option
from ddp_magic.prelude import HOMES, RANK_NAMES

_MAGICS = {
    "%%ddp": OPTIONS,
    "%ddp_status": STATUS_OPTIONS,
    "%ddp_show": SHOW_OPTIONS,
    "%ddp_logs": LOGS_OPTIONS,
    "%ddp_stop": STOP_OPTIONS,
    "%ddp_wait": WAIT_OPTIONS,
    "%ddp_attach": ATTACH_OPTIONS,
}
_LISTS = ("capture", "pull")  # comma-separated
_WORD = re.compile(r"(?<![\w.])[^\W\d]\w*$")
_SESSION = re.compile(r"\s(?:-s|--session)[ =]?(\w+)")
_ASSIGNED = re.compile(r"^\s*([^\W\d]\w*)\s*=(?!=)", re.MULTILINE)

Source = Callable[[], Iterable[str]]


def complete(
    line: str, sources: Mapping[str, Source], body: str = ""
) -> tuple[str, list[str]] | None:
    """Complete the line of a magic.

    Args:
        line: The line up to the cursor.
        sources: What names there are: "session", "run", "name", and "bound" in the session.
        body: The cell below the line; `--pull` may name what it assigns.

    Returns:
        The fragment before the cursor and what it may become; None if this is not our line.
    """
    match = re.match(r"\s*(%%?\w+)\s+(.*)$", line)
    if match is None or match[1] not in _MAGICS:
        return None
    options = _MAGICS[match[1]]
    *words, fragment = re.split(r"\s+", match[2])
    if "--" in words:  # the cell's own arguments
        return None
    flags = {flag: option for option in options for flag in option.flags if flag != "--"}
    if fragment.startswith("--") and "=" in fragment:
        flag, _, fragment = fragment.partition("=")
    else:
        flag = words[-1] if words else ""
    option = _option(flag, flags)
    if option is not None and option.metavar == "FILE":
        return None  # IPython completes paths
    if option is not None and option.metavar:
        return _values(option, fragment, sources, body)
    positional = [option for option in options if not option.flags]
    values = _values(positional[0], fragment, sources, body)[1] if positional else []
    # What turns a flag off is rarely wanted: not before it is clear that it is.
    negations = [option.negation for option in options] if len(fragment) > len("--n") else []
    return fragment, values + [flag for flag in [*flags, *negations] if flag.startswith(fragment)]


def complete_name(
    lines: Sequence[str], before: str, bound: Callable[[str], Collection[str]]
) -> tuple[str, list[str]]:
    """Complete a name in the body of a `%%ddp` cell with those that only a rank has.

    Args:
        lines: The lines above the cursor's.
        before: The cursor's line up to the cursor.
        bound: Returns the names that the cells of a session have bound.

    Returns:
        The beginning of the name, and names of the rank, of the prelude and of the cell's session;
        none in any other cell.
    """
    head = next((line for line in lines if re.match(r"\s*[^\s#]", line)), "")
    word = _WORD.search(before)
    if word is None or not re.match(r"%%ddp(\s|$)", head):
        return "", []
    session = _SESSION.search(head)
    names = {*RANK_NAMES, *HOMES, *(bound(session[1]) if session else ())}
    return word[0], sorted(name for name in names if name.startswith(word[0]))


def _option(flag: str, flags: Mapping[str, Option]) -> Option | None:
    """Return the option of a flag, which may be abbreviated."""
    if flag in flags:
        return flags[flag]
    found = matching(flag, flags) if flag.startswith("--") else []
    return flags[found[0]] if len(found) == 1 else None


def _values(
    option: Option, fragment: str, sources: Mapping[str, Source], body: str
) -> tuple[str, list[str]]:
    values = list(option.values)
    if option.name in _LISTS:
        whole, comma, fragment = fragment.rpartition(",")
        if comma:
            values = []  # `none` stands alone
        if option.name == "pull" and "@" in fragment:
            fragment = fragment.rpartition("@")[2]
            return fragment, [value for value in ["all"] if value.startswith(fragment)]
        named = set(whole.split(","))
        found = {*sources["name"]()}
        if option.name == "pull":
            found |= {*_ASSIGNED.findall(body), *sources["bound"]()}
        values += sorted(found - named)
        if not fragment.startswith("_"):
            values = [value for value in values if not value.startswith("_")]
    elif option.name in sources:
        values += sources[option.name]()
    return fragment, [value for value in values if value.startswith(fragment)]


class Completion:
    """Offers the options to IPython's completer while the extension is loaded."""

    def __init__(self, shell: InteractiveShell, controller: Controller) -> None:
        self._matchers: list[Any] = shell.Completer.custom_matchers
        sources: dict[str, Source] = {
            "session": controller.asked.stoppable,
            "run": lambda: [run.id for run in (*controller.background, *controller.runs)],
            "name": controller.notebook.visible,
        }

        def bound(name: str) -> Collection[str]:
            session = controller.sessions.get(name)
            return session.held.bound if session else ()

        def matcher(context: Any) -> dict[str, Any]:  # noqa: ANN401 -- IPython's CompletionContext
            lines = context.full_text.split("\n")
            line = lines[context.cursor_line][: context.cursor_position]
            session = _SESSION.search(lines[context.cursor_line])
            own = {**sources, "bound": lambda: bound(session[1]) if session else ()}
            found = complete(line, own, "\n".join(lines[context.cursor_line + 1 :]))
            # Without a line of ours: IPython's own names are offered too.
            fragment, texts = found or complete_name(lines[: context.cursor_line], line, bound)
            if found and not texts:
                texts = [fragment]  # without any, IPython offers its own names as values
            kind = "magic" if found else "instance"
            return {
                "completions": [SimpleCompletion(text=text, type=kind) for text in texts],
                "matched_fragment": fragment,
                "ordered": True,
                "suppress": bool(found and texts),  # files and variables are not options
            }

        self._matcher = context_matcher(identifier="ddp_magic")(matcher)
        self._matchers.append(matcher)

    def close(self) -> None:
        """Remove it."""
        if self._matcher in self._matchers:
            self._matchers.remove(self._matcher)
