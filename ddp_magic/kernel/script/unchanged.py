"""Whether a function or class still is what its statement makes of the notebook's names now."""

from __future__ import annotations

import abc
import ast
import contextlib
import enum
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ddp_magic.kernel.values.names import names_of

_UNKNOWN = object()
_MUTABLE = (list, dict, set)
_FIXED = (int, float, str, bytes, tuple, type(None), types.ModuleType)
_PLAIN = (int, float, str, bytes, tuple, type(None), *_MUTABLE)
_NO_DATA = (types.ModuleType, property)
_CALLS = (ast.Call, ast.Await, ast.NamedExpr, ast.Yield, ast.YieldFrom)
_REFERENCES = (ast.Name, ast.Attribute, ast.Subscript)
# What Python adds to a class beside names with two underscores: for an ABC, and a NamedTuple.
_ADDED = {"_abc_impl", "_fields", "_field_defaults", "_make", "_replace", "_asdict"}


def is_unchanged(value: Any, node: ast.stmt, home: Mapping[str, Any]) -> bool:  # noqa: ANN401
    """Return whether a value has only what its statement gives it, as far as can be seen.

    Args:
        value: A function or a class.
        node: The statement that has defined it.
        home: The notebook's namespace, in which a name may mean something else by now.
    """
    if isinstance(node, ast.ClassDef):
        return _is_unchanged_class(value, node, home)
    return _is_unchanged_function(value, node, home)


def functions_in(member: object) -> Iterator[types.FunctionType]:
    """Yield the functions that a function, or a member of a class, is made of."""
    parts = ("__func__", "fget", "fset", "fdel", "func")
    for part in (member, *(getattr(member, name, None) for name in parts)):
        try:
            function = inspect.unwrap(part)  # type: ignore[arg-type]
        except ValueError:  # it wraps itself
            continue
        if isinstance(getattr(function, "__code__", None), types.CodeType):
            yield function


def _is_unchanged_function(value: object, node: Any, names: Mapping[str, Any]) -> bool:  # noqa: ANN401
    decorators = getattr(node, "decorator_list", [])
    if _keeps_state(value) or not _are_fixed(decorators, names):
        return False
    arguments = node.args if hasattr(node, "args") else node.value.args
    written = [*arguments.defaults, *filter(None, arguments.kw_defaults)]
    lines = range(min(part.lineno for part in (node, *decorators)), node.end_lineno + 1)
    for function in functions_in(value):
        if function.__code__.co_firstlineno in lines:
            only = function.__kwdefaults__ or {}
            now = [*(function.__defaults__ or ()), *only.values()]
            return len(now) == len(written) and all(
                _may_be(*pair, names) for pair in zip(written, now, strict=True)
            )
    # A decorator hides it, or it is another one.
    return bool(decorators) and all(isinstance(default, ast.Constant) for default in written)


def _keeps_state(function: Any) -> bool:  # noqa: ANN401 -- the notebook's
    """Return whether what decorators have made holds what its calls may have changed."""
    wrappers: list[Any] = []
    while "__wrapped__" in getattr(function, "__dict__", ()) and function not in wrappers:
        wrappers.append(function)
        function = function.__wrapped__
    return any(
        any(not name.startswith("__") for name in vars(wrapper))
        or not all(map(_is_fixed, _closure(wrapper)))
        for wrapper in wrappers
        if isinstance(wrapper, types.FunctionType)
    )


def _closure(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty
            yield cell.cell_contents


def _is_fixed(held: object) -> bool:
    if isinstance(held, _MUTABLE):
        return not held
    owner = getattr(held, "__self__", held)  # of a method
    is_code = callable(held) and type(owner).__module__ != "__main__"
    return is_code or isinstance(held, _FIXED)


def _is_unchanged_class(value: type, node: ast.ClassDef, home: Mapping[str, Any]) -> bool:
    own = vars(value)
    if not _are_fixed([*node.decorator_list, *(word.value for word in node.keywords)], home):
        return False
    for expression in node.bases:
        if _calls(expression):
            return False  # it may be another class the next time
        base = _evaluated(expression, home)
        if isinstance(base, type) and base not in value.__bases__:
            return False  # it was defined anew
    names = dict(home)
    # A dataclass, a NamedTuple and an Enum put something else where the values were.
    hides = bool(node.decorator_list) or type(value) not in (type, abc.ABCMeta)
    bound: set[str] = set()
    for part in node.body:
        found = {n: _mangled(n, node) for n in names_of(ast.Module([part], [])).assigns}
        members = {name: own[key] for name, key in found.items() if key in own}
        if not _is_unchanged_part(part, members, names, hides=hides):
            return False
        names |= members
        bound |= {*found.values()}
    if type(value) not in (type, abc.ABCMeta, enum.EnumMeta):
        return True  # its metaclass may have added anything
    return value.__name__ == node.name and all(
        name in _ADDED
        or name[0] == name[-1] == "_"
        or isinstance(own[name], types.MemberDescriptorType)
        for name in own.keys() - bound
    )


def _is_unchanged_part(
    part: ast.stmt, members: Mapping[str, Any], names: Mapping[str, Any], *, hides: bool
) -> bool:
    """Return whether a statement in a class still gives it these members.

    Args:
        part: The statement.
        members: What the class now has under the names that the statement binds.
        names: Names that the statement finds.
        hides: Whether a member may be something else than the value that was assigned.
    """
    match part:
        case (
            ast.Pass()
            | ast.Import()
            | ast.ImportFrom()
            | ast.Expr(value=ast.Constant())
            | ast.AnnAssign(value=None)
        ):
            return True
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name in members and _is_unchanged_function(members[name], part, names)
        case ast.ClassDef(name=name):
            inner = members.get(name)
            return isinstance(inner, type) and _is_unchanged_class(inner, part, names)
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as expression)
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as expression)
        ):
            now = members.get(name, _UNKNOWN)
            if (hides or hasattr(now, "__get__")) and type(now) not in _PLAIN:
                return _are_fixed([expression], names)
            return _may_be(expression, now, names)
    return False  # it may do anything


def _mangled(name: str, node: ast.ClassDef) -> str:
    is_private = name.startswith("__") and not name.endswith("__")
    return f"_{node.name.lstrip('_')}{name}" if is_private else name


def _are_fixed(expressions: Iterable[ast.expr], names: Mapping[str, Any]) -> bool:
    """Return whether expressions read no data, which may have been other data before."""
    todo: list[ast.AST] = [*expressions]
    while todo:
        node = todo.pop()
        value = names.get(node.id, _UNKNOWN) if isinstance(node, ast.Name) else _UNKNOWN
        if not (value is _UNKNOWN or callable(value) or isinstance(value, _NO_DATA)):
            return False
        todo += ast.iter_child_nodes(node.args if isinstance(node, ast.Lambda) else node)
    return True


def _may_be(expression: ast.expr, now: object, names: Mapping[str, Any]) -> bool:
    """Return whether an expression gives this value, as far as can be seen.

    A call does not: a second one may return something else (`time.time()`, `torch.randn(3)`).
    """
    if _calls(expression):
        return False
    found = _evaluated(expression, names)
    if found is _UNKNOWN or found is now or isinstance(expression, ast.Lambda):
        return True
    if isinstance(expression, _REFERENCES) and isinstance(now, _MUTABLE):
        return False  # another list by now
    try:
        same = type(found) is type(now) and isinstance(now, _PLAIN) and bool(found == now)
    except Exception:  # noqa: BLE001 -- of arrays in a list
        return False
    return same and repr(found) == repr(now)  # [1] is not [True]


def _calls(expression: ast.expr) -> bool:
    return any(isinstance(node, _CALLS) for node in ast.walk(expression))


def _evaluated(expression: ast.expr, names: Mapping[str, Any]) -> object:
    try:
        code = compile(ast.Expression(expression), "<default>", "eval", dont_inherit=True)
        found: object = eval(code, dict(names))  # noqa: S307 -- the notebook's own expression
    except Exception:  # noqa: BLE001 -- a name is gone
        return None if isinstance(expression, ast.Name) else _UNKNOWN
    return found
