"""What of a cell only defines: its imports, functions, classes and constants. Pure."""

from __future__ import annotations

import ast
from collections.abc import Collection


def definitions(source: str) -> ast.Module:
    """Return only the imports, functions, classes and constants of a cell.

    Imports and constants may be in a `try` or an `if` that contains nothing else.
    """
    tree = ast.parse(source)
    known: set[str] = {"__name__"}
    tree.body = [statement for statement in tree.body if defines(statement, known)]
    return tree


def names_bound(tree: ast.Module) -> set[str]:
    """Return the names that definitions (see `definitions`) bind at the top level."""
    bound: set[str] = set()
    todo: list[ast.AST] = [*tree.body]
    while todo:
        node = todo.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                bound.add(name)
            case ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=asname):
                bound.add((asname or name).partition(".")[0])
            case ast.Name(id=name, ctx=ast.Store()):
                bound.add(name)
            case _:
                todo += ast.iter_child_nodes(node)
    return bound


def defines(statement: ast.stmt, known: set[str]) -> bool:
    """Return whether a statement only defines; add to `known` the names that constants may use."""
    parts: list[ast.stmt] = []
    constant = True
    match statement:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            known.update((a.asname or a.name).partition(".")[0] for a in names)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Pass():
            pass
        case ast.Assign(targets=targets, value=value):
            constant = _bind_constant(targets, value, known)
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            constant = _bind_constant([target], value, known)
        case ast.Try():  # a handler runs only if an import has failed
            parts = [*statement.body, *statement.orelse, *statement.finalbody]
        case ast.If(test=test):
            constant = _is_constant(test, known, ast.Attribute)
            parts = [*statement.body, *statement.orelse]
        case _:
            return False
    return constant and all(defines(part, known) for part in parts)


# Nodes that are evaluated without a call.
_PURE = (
    *(ast.Constant, ast.JoinedStr, ast.FormattedValue, ast.Tuple, ast.List, ast.Set, ast.Dict),
    *(ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Subscript, ast.Slice),
    *(ast.unaryop, ast.operator, ast.boolop, ast.cmpop, ast.expr_context),
)


def _is_constant(value: ast.expr, known: Collection[str], *more: type[ast.AST]) -> bool:
    return all(
        isinstance(node, (*_PURE, *more)) or (isinstance(node, ast.Name) and node.id in known)
        for node in ast.walk(value)
    )


def _bind_constant(targets: Collection[ast.expr], value: ast.expr, known: set[str]) -> bool:
    if not (all(map(_is_name, targets)) and _is_constant(value, known)):
        return False
    known.update(n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
    return True


def _is_name(target: ast.expr) -> bool:
    """Return whether a target is a name or names; `config.lr = 1` needs an object of the cell."""
    if isinstance(target, (ast.Tuple, ast.List)):
        return all(map(_is_name, target.elts))
    return isinstance(target, ast.Name)
