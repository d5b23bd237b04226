"""Whether a function or class still is what its statement makes of the notebook's names now."""

from __future__ import annotations

import abc
import ast
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any

from ddp_magic.kernel.values.names import names_of

_UNKNOWN = object()
_PLAIN = (int, float, str, bytes, tuple, list, dict, set, type(None))
_CALLS = (ast.Call, ast.Await, ast.NamedExpr, ast.Yield, ast.YieldFrom)


def is_unchanged(value: Any, node: ast.stmt, home: Mapping[str, Any]) -> bool:  # noqa: ANN401
    """Return whether a value has only what its statement gives it, as far as can be seen.

    Args:
        value: A function or a class.
        node: The statement that has defined it.
        home: The notebook's namespace, in which a name may mean something else by now.
    """
    if isinstance(node, ast.ClassDef):
        return _is_unchanged_class(value, node, home)
    if hasattr(value, "dispatch"):  # of functools.singledispatch: one may be registered in no name
        others = [*value.registry.values()][1:]
        if not all(home.get(other.__name__) is other for other in others):
            return False
    pairs = _defaults(inspect.unwrap(value), node)
    return all(_may_be(expression, now, home) for expression, now in pairs)


def _defaults(function: Any, node: ast.stmt) -> Iterator[tuple[ast.expr, object]]:  # noqa: ANN401
    """Yield each default value of a function: as it is written, and as it is."""
    arguments: ast.arguments = getattr(node, "args", None) or node.value.args  # type: ignore[attr-defined]
    yield from zip(arguments.defaults, function.__defaults__ or (), strict=False)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is not None:
            yield default, (function.__kwdefaults__ or {}).get(argument.arg, _UNKNOWN)


def _is_unchanged_class(value: type, node: ast.ClassDef, home: Mapping[str, Any]) -> bool:
    own = vars(value)
    for expression in node.bases:
        if _calls(expression):
            return False  # it may be another class the next time
        base = _evaluated(expression, home)
        if isinstance(base, type) and base not in value.__bases__:
            return False  # it was defined anew
    if type(value) in (type, abc.ABCMeta):
        names = dict(home)
        for part in node.body:
            match part:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as expression)
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as expression)
                ):
                    now = own.get(name, _UNKNOWN)
                    # A dataclass and a NamedTuple put something else there.
                    hides = bool(node.decorator_list) or hasattr(now, "__get__")
                    hidden = hides and not isinstance(now, _PLAIN)
                    if not hidden and not _may_be(expression, now, names):
                        return False
            bound = names_of(ast.Module([part], [])).assigns
            names |= {name: own[name] for name in bound if name in own}
    if node.decorator_list or type(value) not in (type, abc.ABCMeta):
        return True
    added = own.keys() - names_of(ast.Module(node.body, [])).assigns
    return all(
        name.startswith("_") or isinstance(own[name], types.MemberDescriptorType) for name in added
    )


def _may_be(expression: ast.expr, now: object, names: Mapping[str, Any]) -> bool:
    """Return whether an expression gives this value, as far as can be seen.

    A call does not: a second one may return something else (`time.time()`, `torch.randn(3)`).
    """
    if _calls(expression):
        return False
    found = _evaluated(expression, names)
    if found is _UNKNOWN or found is now or isinstance(expression, ast.Lambda):
        return True
    try:
        return type(found) is type(now) and isinstance(now, _PLAIN) and bool(found == now)
    except Exception:  # noqa: BLE001 -- of arrays in a list
        return False


def _calls(expression: ast.expr) -> bool:
    return any(isinstance(node, _CALLS) for node in ast.walk(expression))


def _evaluated(expression: ast.expr, names: Mapping[str, Any]) -> object:
    try:
        code = compile(ast.Expression(expression), "<default>", "eval", dont_inherit=True)
        found: object = eval(code, dict(names))  # noqa: S307 -- the notebook's own expression
    except Exception:  # noqa: BLE001 -- a name is gone
        return None if isinstance(expression, ast.Name) else _UNKNOWN
    return found
