"""What the magics and shell commands of a cell read and bind, as Python that can be analyzed. Pure.

IPython makes a call with a text of each: `%time f(x)` becomes `run_line_magic('time', 'f(x)')`, and
`!ls {path}` becomes `system('ls {path}')`. The names are in the text.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

from IPython.utils.text import DollarFormatter

_RUN_CODE = frozenset(["time", "timeit", "prun", "memit", "mprun", "lprun", "capture", "debug"])
_INSPECT = frozenset(["pinfo", "pinfo2", "pdef", "pdoc", "pfile", "psource"])  # `x?`, `x??`
_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST


def with_magics(tree: ast.Module, transform: Callable[[str], str]) -> ast.Module:
    """Return a module with the code of its magics before the statements that call them.

    Args:
        tree: A cell, as Python; it is changed.
        transform: Turns IPython's syntax into Python, for a cell magic in the cell.
    """
    changed: ast.Module = _Magics(transform).visit(tree)
    return changed


class _Magics(ast.NodeTransformer):
    def __init__(self, transform: Callable[[str], str]) -> None:
        self._transform = transform

    def visit_Expr(self, node: ast.Expr) -> list[ast.stmt]:
        return [*self._code_of(node.value), node]

    def visit_Assign(self, node: ast.Assign) -> list[ast.stmt]:
        return [*self._code_of(node.value), node]

    def _code_of(self, call: ast.expr) -> list[ast.stmt]:
        """Return what a call of IPython's runs, if it is one."""
        match call:
            case ast.Call(func=ast.Attribute(value=owner)) if not _is_ipython(owner):
                return []
            case ast.Call(
                func=ast.Attribute(attr=("system" | "getoutput")),
                args=[ast.Constant(value=str(text))],
            ):
                return _fields(text)
            case ast.Call(
                func=ast.Attribute(attr="run_line_magic"),
                args=[ast.Constant(value=str(name)), ast.Constant(value=str(text))],
            ):
                runs = name in _RUN_CODE or name in _INSPECT
                return self._parsed(text) if runs else _fields(text)
            case ast.Call(
                func=ast.Attribute(attr="run_cell_magic"),
                args=[
                    ast.Constant(value=str(name)),
                    ast.Constant(value=str(text)),
                    ast.Constant(value=str(body)),
                ],
            ):
                if name not in _RUN_CODE:
                    return _fields(text)
                setup = self._parsed(text) if name == "timeit" else []
                return setup + self._parsed(body)
        return []

    def _parsed(self, text: str) -> list[ast.stmt]:
        """Return the statements in a text, behind the options of a magic: `-n 1 f(x)`."""
        after_option = False
        while text.strip():
            try:
                source = self._transform(text)
                tree = compile(source, "<magic>", "exec", flags=_FLAGS, dont_inherit=True)
            except (SyntaxError, ValueError):
                word, _, text = text.strip().partition(" ")
                is_option = word.startswith("-")
                if not (is_option or after_option):
                    return []  # the rank raises the error
                after_option = is_option
            else:
                return with_magics(tree, self._transform).body
        return []


def _is_ipython(owner: ast.expr) -> bool:
    match owner:
        case ast.Call(func=ast.Name(id="get_ipython"), args=[]):
            return True
    return False


def _fields(text: str) -> list[ast.stmt]:
    """Return the expressions that IPython expands in a text: `{expression}` and `$name`."""
    found: list[ast.stmt] = []
    try:
        for _, name, spec, _ in DollarFormatter().parse(text):
            if name is not None:
                # A slice such as {names[1:2]} is read as a format specification.
                expression = ast.parse(f"{name}:{spec}" if spec else name.strip(), mode="eval")
                found.append(ast.Expr(expression.body))
    except (SyntaxError, ValueError):
        return []  # IPython leaves such a text as it is: awk '{print $1}'
    return found
