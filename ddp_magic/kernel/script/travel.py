"""How each name of the notebook gets into a script: import, literal, source or pickle."""

from __future__ import annotations

import builtins
import contextlib
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddp_magic.errors import CaptureError
from ddp_magic.kernel.script.imports import Home, Imports, home_of, value_at
from ddp_magic.kernel.script.literals import NotPlainError, literal, mutable_parts
from ddp_magic.kernel.script.sources import Source, source_of
from ddp_magic.kernel.script.values_file import ScriptPickler
from ddp_magic.kernel.values.names import Names
from ddp_magic.kernel.values.needed_values import NeededValues
from ddp_magic.prelude import RANK_NAMES
from ddp_magic.wire.pickling import problem

_OF_SCRIPT = frozenset(["__name__", "__file__"])
_ALWAYS = frozenset(dir(builtins)) | RANK_NAMES | _OF_SCRIPT | {"display"}


@dataclass
class Travel:
    """The names that a script has, by the way in which each gets there.

    Attributes:
        imports: Where a name is imported from.
        literals: Plain values.
        sources: Functions and classes with their statements, in an order that works.
        pickled: All other names, in the order of their pickles.
        payload: The pickles; empty for none.
        refers: Whether they refer to definitions of the script.
    """

    imports: dict[str, Home] = field(default_factory=dict)
    literals: dict[str, object] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    pickled: list[str] = field(default_factory=list)
    payload: bytes = b""
    refers: bool = False

    @property
    def names(self) -> set[str]:
        """All of them."""
        return {*self.imports, *self.literals, *self.sources, *self.pickled}


def sources_of(
    needed: NeededValues, home: Mapping[str, Any], files: Sequence[str]
) -> dict[str, Source]:
    """Find the statements of the functions and classes that are needed.

    What a statement reads where it stands, such as a decorator, becomes needed too.
    """
    found: dict[str, Source] = {}
    looked: set[str] = set()
    while todo := [name for name in needed.stream.types if name not in looked]:
        for name in todo:
            looked.add(name)
            source = None if home_of(home[name]) else source_of(name, home[name], home, files)
            if source is None:
                continue
            more = source.now - needed.stream.types.keys() - needed.prelude
            # A decorator may hold what cannot be sent. The function that it has made can be.
            with contextlib.suppress(CaptureError):
                before = dict.fromkeys(more, frozenset[str]())
                needed.follow(Names(reads=more, assigns=frozenset(), before=before))
                found[name] = source
    return found


def plan(
    needed: NeededValues,
    sources: Mapping[str, Source],
    home: Mapping[str, Any],
    written: Mapping[str, Home],
) -> Travel:
    """Decide how each needed name travels; `written` is where the notebook has imported it from.

    A statement stands above the pickle, so it may read nothing that is pickled. Nor may it change
    a list again when it runs again, as a decorator that registers functions does. A list that a
    pickled object holds too is pickled with it.

    Raises:
        CaptureError: A value cannot be pickled.
    """
    travel = Travel()
    left = [name for name in needed.stream.types if name not in _OF_SCRIPT]
    for name in left:
        if place := home_of(home[name]):
            same = name in written and value_at(written[name]) is home[name]
            travel.imports[name] = written[name] if same else place
        elif name not in sources:
            with contextlib.suppress(NotPlainError):
                literal(home[name], Imports({}))
                travel.literals[name] = home[name]
    while True:
        _drop_shared(travel.literals)
        known = {*_ALWAYS, *needed.prelude, *travel.imports, *travel.literals}
        lists = {name for name, value in travel.literals.items() if any(mutable_parts(value))}
        changing = lists.union(*(source.sets for source in sources.values()))
        travel.sources = _standing(sources, known, changing)
        others = {*travel.imports, *travel.literals, *travel.sources}
        travel.pickled = [name for name in left if name not in others]
        met = _pickle(travel, home)
        if not met:
            return travel
        for name in met:
            del travel.literals[name]


def _drop_shared(literals: dict[str, object]) -> None:
    """Drop the values that hold the same list: as literals they would be two."""
    holders: dict[int, set[str]] = {}
    for name, value in literals.items():
        for part in mutable_parts(value):
            holders.setdefault(id(part), set()).add(name)
    for names in holders.values():
        for name in names if len(names) > 1 else ():
            literals.pop(name, None)


def _standing(
    sources: Mapping[str, Source], known: Collection[str], changing: Collection[str]
) -> dict[str, Source]:
    """Return the statements that can stand above the pickle, in an order that works.

    Args:
        sources: All statements.
        known: Other names that are defined above them.
        changing: Names whose values change by more than their own statement.
    """
    usable = {
        name: source
        for name, source in sources.items()
        if not _touched(name, sources) & set(changing)
        # A decorator that was defined anew afterwards may be another one.
        and all(sources[n].place <= source.place for n in source.called if n in sources)
    }
    while broken := {n for n in usable if not _reach(n, usable) <= {*known, *usable}}:
        usable = {name: source for name, source in usable.items() if name not in broken}
    ordered: dict[str, Source] = {}
    begun: set[str] = set()

    def place(name: str) -> None:
        if name in usable and name not in begun:
            begun.add(name)
            for need in sorted(_reach(name, usable) & usable.keys(), key=_place):
                place(need)
            ordered[name] = usable[name]

    def _place(name: str) -> tuple[int, int]:
        return usable[name].place

    for name in sorted(usable, key=_place):
        place(name)
    return ordered


def _reach(name: str, sources: Mapping[str, Source]) -> set[str]:
    """Return the names that a statement may read where it stands, by the functions it calls too."""
    return {*sources[name].now, *_by_calls(name, sources, lambda one: one.now | one.later)}


def _touched(name: str, sources: Mapping[str, Source]) -> set[str]:
    """Return the names that the calls of a statement may change."""
    return _by_calls(name, sources, lambda one: one.touched | one.sets)


def _by_calls(
    name: str, sources: Mapping[str, Source], reads: Callable[[Source], frozenset[str]]
) -> set[str]:
    """Return what a statement calls, what that reads, and so on."""
    found: set[str] = set()
    todo = set(sources[name].called)
    while todo:
        found.add(one := todo.pop())
        if one in sources:
            todo |= reads(sources[one]) - found
    return found


def _pickle(travel: Travel, home: Mapping[str, Any]) -> set[str]:
    """Write the pickle; return the names of literals that it holds too."""
    travel.payload = b""
    if not travel.pickled:
        return set()
    written = {id(p): n for n, value in travel.literals.items() for p in mutable_parts(value)}
    defined = {name: home[name] for name in travel.sources}

    file = io.BytesIO()
    pickler = ScriptPickler(file, home=home, defined=defined, written=written)
    for name in travel.pickled:  # one after the other, since `__setstate__` may read names
        value = home[name]
        try:
            pickler.dump(value)
        except Exception as error:  # a value's own code may raise anything
            what = f"cannot write `{name}` ({type(value).__name__}) to a file: {problem(error)}"
            raise CaptureError(f"{what}; create it in the cell") from error
    travel.payload, travel.refers = file.getvalue(), pickler.refers
    return pickler.met
