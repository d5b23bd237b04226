"""`{expression}` and `$name` in the line of `%%ddp`: variables of the notebook.

IPython puts the values into the text of the line; a quote or a space in a value would split it.
Here the line is split first, as a shell does: after `--`, a value stays in its own argument. Before
it, a value is text: `{options}` may be several options, and a list is its items: `--pull {names}`.

What `DollarFormatter.parse` yields is the same in IPython 8.18 to 9.18.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from IPython.utils.text import DollarFormatter

_FIRST = 0xF0000  # private use in Unicode: these characters stand for the values


class ExpansionError(ValueError):
    """An expression in the options cannot be evaluated; the text says why."""


def split(line: str, names: Mapping[str, Any]) -> list[str]:
    """Split the line of a magic into words, and expand the notebook's variables in them.

    After `--`, what cannot be evaluated stays as it is: it may be text for the cell.

    Args:
        line: The line as typed.
        names: The notebook's variables.

    Raises:
        ExpansionError: An expression before `--` cannot be evaluated.
        ValueError: A quote is not closed; the text is that of `shlex`.
    """
    marked, values, lists, failures = _mark(line, names)
    options, arguments = _at_dashes(marked)
    for mark, problem in failures.items():
        if mark in options:
            raise ExpansionError(problem)
    table = {ord(mark): text for mark, text in values.items()}
    words = shlex.split(options.translate({**table, **lists}))
    return words + [word.translate(table) for word in arguments]


def _mark(
    line: str, names: Mapping[str, Any]
) -> tuple[str, dict[str, str], dict[int, str], dict[str, str]]:
    """Return the line with a mark for each field, and what these stand for.

    That is the fields' texts, those of lists in an option, and why some cannot be expanded.
    """
    formatter = DollarFormatter()
    marked = ""
    values: dict[str, str] = {}
    lists: dict[int, str] = {}
    failures: dict[str, str] = {}
    for literal, typed, expression, conversion in _fields(line):
        marked += literal
        if not typed:
            continue
        marked += (mark := chr(_FIRST + len(values)))
        values[mark] = typed
        try:
            value = eval(expression, dict(names))  # noqa: S307 -- the user's own, as IPython does
            if isinstance(value, (list, tuple, set, frozenset, range)) and conversion is None:
                lists[ord(mark)] = ",".join(map(str, value))
            values[mark] = formatter.format_field(formatter.convert_field(value, conversion), "")
        except Exception as error:  # noqa: BLE001 -- whatever the expression raises
            text = isinstance(error, SyntaxError) and typed.startswith("{")
            as_text = "; write {{ and }} for braces" if text else ""
            failures[mark] = f"cannot expand {typed}: {type(error).__name__}: {error}{as_text}"
    return marked, values, lists, failures


def _fields(line: str) -> Iterator[tuple[str, str, str, str | None]]:
    """Yield text, then the field behind it: as typed, its expression and its conversion (`!r`)."""
    try:
        parsed = list(DollarFormatter().parse(line))
    except ValueError:  # a brace without its other one: text
        parsed = [(line, None, None, None)]
    begin = 0
    for literal, name, spec, conversion in parsed:
        if name is None:
            yield literal, "", "", None
            continue
        # A slice such as {names[1:2]} is read as a format specification.
        expression = f"{name}:{spec}" if spec else name
        braces = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        rest = line[begin:]
        texts = [text for text in (f"{{{braces}}}", f"${name}") if text in rest]
        typed = min(texts, key=rest.index, default=f"{{{braces}}}")
        begin += rest.index(typed) + len(typed) if texts else 0
        yield literal, typed, expression, conversion


def _at_dashes(marked: str) -> tuple[str, list[str]]:
    """Return the text up to `--`, and the words from there on."""
    reader = io.StringIO(marked)
    lexer = shlex.shlex(reader, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    begin = 0
    while (word := lexer.get_token()) is not None:
        if word == "--":
            return marked[:begin], shlex.split(marked[begin:])
        begin = reader.tell()
    return marked, []
