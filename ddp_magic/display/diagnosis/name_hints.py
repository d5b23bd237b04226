"""Hints on names: one that is missing in a rank, or is not what the user meant. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from ddp_magic.prelude import HOMES, RANK_NAMES
from ddp_magic.wire.worker_events import Error

_MAIN = (
    r"(?:__main__|__mp_main__|ddp_magic\.worker\.child_main)"  # the last is a rank's, by its spec
)
# The errors for a name that `__main__` does not have; the AttributeErrors are pickle's, which looks
# up classes there.
_MISSING = {
    "NameError": re.compile(r"^name '(\w+)'"),
    "AttributeError": re.compile(
        rf"Can't get (?:local )?attribute '(\w+)[\w.<>]*' on <module '{_MAIN}'|"
        rf"module '{_MAIN}' has no attribute '(\w+)"
    ),
}
_NEVER = re.compile(r"(?!)")

# What a function of the prelude raises if the user meant another one. Other errors come from a
# correct call; naming the prelude there would be noise.
_MISTAKEN = ("AttributeError", "TypeError")
_WRONG_KIND = re.compile(r"^'(\w+)' object (?:is not callable|has no attribute)")


@dataclass(frozen=True)
class Surroundings:
    """Where names could have come from.

    Attributes:
        notebook: The names that the notebook defines.
        elsewhere: Returns the cell that last assigned a name in other ranks, and the session that
            still has it; both are empty if there is none.
    """

    notebook: Mapping[str, object] = field(default_factory=dict)
    elsewhere: Callable[[str], tuple[str, str]] = lambda _name: ("", "")


def name_hints(
    error: Error, cell_source: str, surroundings: Surroundings, prelude: Collection[str]
) -> list[str]:
    """Return hints on names that may have caused an error.

    Args:
        error: What the rank raised.
        cell_source: The cell's source.
        surroundings: Where names could have come from.
        prelude: Names of ddp_magic's own (not torch's) that the cell uses from the prelude.
    """
    notebook = surroundings.notebook
    hints = _hints_of_children(error, cell_source)
    if hints:
        pass  # the name is missing in a child, not in the rank
    elif found := _MISSING.get(error.ename, _NEVER).search(error.evalue):
        name = next(filter(None, found.groups()))
        if name in notebook:
            hints.append(
                f"your notebook defines `{name}`, but it was not sent to the ranks: --capture "
                "leaves it out, or the cell does not read it by name (if so, add "
                f"`{name} = {name}` to the cell)"
            )
        elif any(place := surroundings.elsewhere(name)):
            hints.append(_where_it_is(name, *place))
        elif near := _nearest(name, cell_source, notebook):
            hints.append(f"`{name}` is not defined: did you mean {near}?")
    lines = cell_source.splitlines()
    in_cell = error.line and not error.cell and error.line <= len(lines)
    line = lines[error.line - 1] if error.line and in_cell else ""
    hints += _hiding(error, line, notebook)
    for name in sorted(set(re.findall(r"\w+", line)) & set(prelude)):
        if name in notebook:
            hints.append(
                f"`{name}` is from ddp_magic.prelude, because --capture leaves out your notebook's"
            )
        elif error.ename in _MISTAKEN:
            hints.append(
                f"`{name}` is from ddp_magic.prelude: your notebook does not define {name}"
            )
    return hints


def _nearest(name: str, cell_source: str, notebook: Mapping[str, object]) -> str:
    """Return the name that a user is likely to mean, with its place; empty if there is none."""
    own = {*re.findall(r"[^\W\d]\w*", cell_source), *RANK_NAMES} - {name}
    found = difflib.get_close_matches(name, {*own, *notebook, *HOMES}, n=1, cutoff=0.8)
    if not found:
        return ""
    if found[0] in own:
        return f"`{found[0]}`"
    where = "your notebook" if found[0] in notebook else "ddp_magic.prelude"
    return f"`{found[0]}` of {where}"


def _hiding(error: Error, line: str, notebook: Mapping[str, object]) -> list[str]:
    """Return hints on values of the notebook under a name of the prelude: `train = 5`."""
    wrong = _WRONG_KIND.search(error.evalue) if error.ename in _MISTAKEN else None
    names = set(re.findall(r"\w+", line)) & HOMES.keys() & notebook.keys() if wrong else ()
    return [
        f"`{name}` is your notebook's ({kind}), which hides that of ddp_magic.prelude: rename it"
        for name in sorted(names)
        if wrong and wrong[1] == (kind := type(notebook[name]).__name__)
    ]


# Marks of errors that come from a `multiprocessing` child: of a pool or an executor, a DataLoader,
# `torch.multiprocessing.spawn`.
_OF_A_CHILD = ("RemoteTraceback", "worker process", "terminated with the following error")


def _hints_of_children(error: Error, cell_source: str) -> list[str]:
    text = "\n".join([error.evalue, *error.traceback])
    if not any(words in text for words in _OF_A_CHILD):
        return []
    missing = dict.fromkeys(re.findall(r"NameError: name '(\w+)' is not defined", text))
    return [
        f"`{name}`: a spawned child gets the cell's imports, functions, classes and constants, and "
        "what the cell took from the notebook, but nothing that the cell computes: pass it as an "
        "argument, or as an attribute of the Dataset"
        for name in missing
        if re.search(rf"^\s*(?:\w+ *, *)*{name} *(?:[,:]|=(?!=))", cell_source, re.MULTILINE)
    ]


def _where_it_is(name: str, cell: str, session: str) -> str:
    if session:
        return (
            f"`{name}` was last defined in {cell}, in session {session}: --session {session} runs "
            f"this cell there, and --pull {name} in a cell of that session brings it to the "
            "notebook"
        )
    return (
        f"`{name}` was last defined in {cell}, whose ranks have ended: there, --pull {name} brings "
        "it to the notebook, and --session NAME keeps it in the ranks"
    )
