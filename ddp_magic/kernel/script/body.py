"""The cell's own text in a script, unchanged as far as Python allows. Pure.

A process that a rank starts by spawn or forkserver, such as a worker of a DataLoader, imports the
script again. So what the cell does is below `if __name__ == "__main__":`, and what it only defines
is not.
"""

from __future__ import annotations

import ast
import io
import itertools
import re
import token
import tokenize
from collections.abc import Collection, Iterator, Sequence

from ddp_magic.kernel.script.sources import outline, reads
from ddp_magic.kernel.values.names import names_of
from ddp_magic.system.definitions import defines

GUARD = 'if __name__ == "__main__":'

# Functions that return None, or not at all.
_SHOW_NOTHING = ("print", "display", "destroy_process_group", "cleanup", "exit", "quit")
_INSTEAD = {
    "system": "subprocess.run({0!r}, shell=True)",
    "getoutput": "subprocess.check_output({0!r}, shell=True, text=True)",
    "cd": "os.chdir({0!r})",
    "env": "os.environ[...] = ...",
    "time": "time.perf_counter()",
    "timeit": "time.perf_counter()",
}


def problem_of(tree: ast.Module, source: str) -> str:
    """Return which line of a cell has no equivalent in a script, and what to do; empty if none.

    Args:
        tree: The cell, as Python, with IPython's calls for its magics.
        source: Its text.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")), attr=method),
                args=args,
            ):
                words = [a.value for a in args if isinstance(a, ast.Constant)]
                return f"line {node.lineno} {_of_ipython(method, [*map(str, words)])}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "get_ipython":
            return f"line {node.lineno} calls get_ipython(), and a script has no IPython: remove it"
    try:
        compile(source, "<cell>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return (
            f"line {error.lineno} awaits outside a function, which only a notebook can: write an "
            "`async def main()`, and call asyncio.run(main())"
        )
    return ""


def _of_ipython(method: str, words: Sequence[str]) -> str:
    name, text = (words[0], " ".join(words[1:])) if "magic" in method else (method, words[0])
    if name in ("system", "getoutput"):
        what = f"is a shell command (!{text})"
    elif name in ("pinfo", "pinfo2"):
        return f"asks for help ({text}?), which only IPython shows: remove it"
    else:
        what = f"is the magic {'%%' if 'cell' in method else '%'}{name}, which only IPython has"
    instead = _INSTEAD.get(name)
    return f"{what}: " + (f"use {instead.format(text)}" if instead else "remove it")


def without_head(source: str) -> str:
    """Return a cell's text without the comment that its `%%ddp` line has become."""
    return re.sub(r"\A((?:[ \t]*(?:#.*)?\n)*?)[ \t]*# %%ddp\b.*\n", r"\1", source).strip("\n")


def futures(tree: ast.Module) -> set[str]:
    """Return the features that a cell imports from `__future__`."""
    return {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for alias in node.names
    }


def leading_imports(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    """Return the imports with which a cell begins, without those of a star."""
    found: list[ast.Import | ast.ImportFrom] = []
    for node in tree.body[ast.get_docstring(tree, clean=False) is not None :]:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            break
        if all(alias.name != "*" for alias in node.names):
            found.append(node)
    return found


def edited(source: str, shown: str) -> str:
    """Return a cell's text without the imports with which it begins.

    Args:
        source: The cell.
        shown: The function that shows the value of its last expression; empty for none.
    """
    tree = ast.parse(source)
    if shown:
        start, end = _span(source, tree.body[-1])
        source = f"{source[:start]}{shown}({source[start:end]}){source[end:]}"
    for node in reversed(leading_imports(tree)):
        start, end = _span(source, node)
        source = source[:start] + re.sub(r"\A[ \t]*(;[ \t]*|\n)?", "", source[end:])
    if ast.get_docstring(tree) and "__doc__" in source:  # the script has one of its own
        start, _ = _span(source, tree.body[0])
        source = f"{source[:start]}__doc__ = {source[start:]}"
    return source.strip("\n")


def shows_value(tree: ast.Module, source: str) -> bool:
    """Return whether a cell shows the value of its last expression."""
    match tree.body[-1:]:
        case [ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)))] if (
            name in _SHOW_NOTHING or name in _without_value(tree)
        ):
            return False
        case [ast.Expr() as last]:
            return not source[_span(source, last)[1] :].lstrip(" \t").startswith(";")
    return False


def _without_value(tree: ast.Module) -> set[str]:
    """Return the functions of a cell that return nothing."""
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not node.decorator_list
        and not any(isinstance(n, (ast.Return, ast.Yield, ast.YieldFrom)) for n in ast.walk(node))
    }


def _span(source: str, node: ast.stmt) -> tuple[int, int]:
    """Return where a statement starts and ends in a text; `ast` counts bytes."""
    lines = source.split("\n")

    def index(line: int, column: int) -> int:
        before = sum(len(text) + 1 for text in lines[: line - 1])
        return before + len(lines[line - 1].encode()[:column].decode())

    last, column = node.end_lineno or node.lineno, node.end_col_offset or 0
    return index(node.lineno, node.col_offset), index(last, column)


def guarded(source: str, known: Collection[str], before: str, after: str) -> str:
    """Return a cell's text, with what does more than define below a guard.

    Args:
        source: The cell.
        known: Names that the lines above it define.
        before: Lines that run before the cell does anything.
        after: Lines that run at its end.
    """
    parts: list[tuple[bool, str]] = []
    for text, is_guarded, acts in _parts(source, set(known)):
        first = bool(before) and acts
        if first:
            parts.append((True, before + "\n"))
            before = ""
        parts.append((is_guarded, text.lstrip("\n") if first else text))
    parts += [(True, text) for text in (before, after) if text]
    blocks = []
    for is_guarded, group in itertools.groupby(parts, lambda part: part[0]):
        text = "\n".join(text for _, text in group).strip("\n")
        blocks.append(f"{GUARD}\n{indented(text)}" if is_guarded else text)
    return "\n\n".join(blocks)


def _parts(source: str, known: set[str]) -> Iterator[tuple[str, bool, bool]]:
    """Yield the statements of a cell: text, whether a guard is needed, whether it runs code."""
    lines = source.split("\n")
    nodes = ast.parse(source).body
    begin = 0
    while nodes:
        node = nodes.pop(0)
        together = [node]
        while nodes and nodes[0].lineno <= (together[-1].end_lineno or 0):  # a = 1; b = 2
            together.append(nodes.pop(0))
        end = (together[-1].end_lineno or 0) if nodes else len(lines)
        only = all(_only_defines(each, known) for each in together)
        yield "\n".join(lines[begin:end]), not only, not only or any(map(_calls, together))
        begin = end


def _only_defines(node: ast.stmt, known: set[str]) -> bool:
    """Return whether a statement only defines, from what a child has; note what it binds."""
    bound = names_of(ast.Module([node], [])).assigns
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    only = is_text or (reads(node)[0] <= known and defines(node, set(known)))
    if only:
        known |= bound
    else:
        known -= bound
    return only


def _calls(node: ast.stmt) -> bool:
    """Return whether a definition runs code that may need the seed or the group: `w = rand(3)`."""
    outlined = outline(node)
    for part in ast.walk(outlined):
        if hasattr(part, "decorator_list"):
            part.decorator_list = []
    return any(isinstance(part, ast.Call) for part in ast.walk(outlined))


def indented(text: str) -> str:
    """Indent a text by four spaces, but for the lines that begin inside a string."""
    inside: set[int] = set()
    starts: list[int] = []
    for found in tokenize.generate_tokens(io.StringIO(text).readline):
        name = token.tok_name[found.type]
        if name == "STRING":
            inside.update(range(found.start[0] + 1, found.end[0] + 1))
        elif name in ("FSTRING_START", "TSTRING_START"):
            starts.append(found.start[0])
        elif name in ("FSTRING_END", "TSTRING_END"):
            inside.update(range(starts.pop() + 1, found.end[0] + 1))
    return "\n".join(
        line if number in inside or not line.strip() else f"    {line}"
        for number, line in enumerate(text.split("\n"), 1)
    )
