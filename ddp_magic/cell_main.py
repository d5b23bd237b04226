"""What `multiprocessing` children of a rank import in the cell's place.

A child that is spawned runs its parent's main module again, so that what it unpickles finds its
class. A cell must not run again there: it would train again. So the rank's `__main__` names this
module as its origin, and this one gives the child the cell's imports, functions, classes and
constants (assignments of literals), the prelude's names that the cell uses, and what the cell took
along from the notebook. Nothing else of the cell is executed. Standard library only, unless there
is more to do: every `DataLoader` worker pays for it.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

CELL_VARIABLE = "DDP_MAGIC_CELL"
PRELUDE_VARIABLE = "DDP_MAGIC_PRELUDE"
CAPTURE_VARIABLE = "DDP_MAGIC_CAPTURE"


def definitions(source: str) -> ast.Module:
    """Return of a cell only its imports, functions, classes and literal constants."""
    tree = ast.parse(source)
    tree.body = [statement for statement in tree.body if _defines(statement)]
    return tree


def _defines(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import() | ast.ImportFrom():
            return True
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return True
        case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            return _is_literal(value)
    return False


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError):
        return False
    return True


def provide_prelude(namespace: dict[str, Any], names: Collection[str]) -> None:
    """Import these names of the prelude into a namespace; with none, import nothing."""
    if names:
        from ddp_magic import prelude

        namespace.update({name: getattr(prelude, name) for name in names})


def restore(namespace: dict[str, Any], path: str, prelude_names: list[str]) -> None:
    """Put the definitions of the cell at `path` into a namespace.

    Raises:
        NameError: A decorator, base class or default of a definition needs a name that only
            running the cell would give.
    """
    provide_prelude(namespace, prelude_names)
    if CAPTURE_VARIABLE in os.environ:
        from ddp_magic import capture

        namespace.update(capture.receive_as_child(os.environ[CAPTURE_VARIABLE], namespace))
    namespace["__file__"] = path
    tree = definitions(Path(path).read_text(encoding="utf-8"))
    try:
        exec(compile(tree, path, "exec"), namespace)  # noqa: S102 -- the user's own cell
    except NameError as error:
        raise NameError(
            f"{error}: a multiprocessing child of a %%ddp cell gets the cell's imports, functions, "
            "classes and literal constants, and what the cell took from the notebook; the cell "
            "itself is not run again there"
        ) from error


if __name__ == "__mp_main__" and CELL_VARIABLE in os.environ:
    restore(
        globals(),
        os.environ[CELL_VARIABLE],
        [name for name in os.environ.get(PRELUDE_VARIABLE, "").split(",") if name],
    )
