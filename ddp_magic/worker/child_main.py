"""The main module of a rank's `multiprocessing` children, in place of the cell.

A spawned child runs its parent's main module again, so that pickle finds classes in it. A cell must
not run again: it would train again. So the rank's `__main__` names this module as its origin, and
this module gives the child the cell's imports, functions, classes and constants (`SIZE = 4 * 16`,
but not the result of a call), the rank's own names, those of the prelude that the cell uses, and
the notebook's values that the cell uses; in a session, those of earlier cells too. Nothing else of
a cell is executed. It imports only the standard library unless it needs more: every `DataLoader`
worker imports it.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ddp_magic.system.definitions import definitions
from ddp_magic.system.tracebacks import (
    know_source,
    warnings_without_ours,
    without_ours,
    write_tracebacks_without_ours,
)

VARIABLE = "DDP_MAGIC_MAIN"  # names the file that a rank leaves for its children


def provide_prelude(namespace: dict[str, Any], names: Collection[str]) -> None:
    """Import these names of the prelude into a namespace; with none, import nothing."""
    if names:
        from ddp_magic import prelude

        namespace.update({name: getattr(prelude, name) for name in names})


def restore(namespace: dict[str, Any], left: Mapping[str, Any]) -> None:
    """Put what a rank has left into a namespace.

    Args:
        namespace: The namespace of this process's main module.
        left: `cells`: paths, the running cell's last; `files`: their `__file__`, by path;
            `prelude`: names; `captured`: values; `device`: its name.

    Raises:
        NameError: A decorator, base class or default of a definition needs a name that only running
            the cell would define.
    """
    numbers = {name: os.environ.get(name.upper()) for name in ("rank", "local_rank", "world_size")}
    namespace.update({name: int(value) for name, value in numbers.items() if value})
    provide_prelude(namespace, left["prelude"])
    for captured in left["captured"]:
        from ddp_magic.worker.values import received_values

        received_values.receive_as_child(captured, namespace)
    files = left.get("files", {})
    texts = {path: Path(path).read_text(encoding="utf-8") for path in left["cells"]}
    _provide_device(namespace, left.get("device", ""), "\n".join(texts.values()))
    *earlier, path = left["cells"]
    for cell in earlier:
        for statement in definitions(texts[cell]).body:
            try:
                _execute(ast.Module([statement], []), files.get(cell, cell), namespace)
            except NameError:  # of an earlier cell: this one may not need it
                continue
    file = namespace["__file__"] = files.get(path, path)
    for cell, name in files.items():
        know_source(name, Path(cell).read_text(encoding="utf-8"))
    try:
        _execute(definitions(texts[path]), file, namespace)
    except NameError as error:
        raise NameError(
            f"{error}: a multiprocessing child of a %%ddp cell has the cell's imports, functions, "
            "classes and constants, and the notebook's values that the cell uses; it does not run "
            "the cell again"
        ) from error


def _provide_device(namespace: dict[str, Any], name: str, text: str) -> None:
    """Provide the rank's `device`, if the cell's text has this word or torch is imported anyway."""
    if name and ("torch" in sys.modules or "device" in text):
        import torch

        namespace["device"] = torch.device(name)


def _execute(tree: ast.Module, path: str, namespace: dict[str, Any]) -> None:
    exec(compile(tree, path, "exec"), namespace)  # noqa: S102 -- the user's own cell


def _input(prompt: object = "", /) -> str:
    """Raise an error: the input of a child is empty."""
    raise RuntimeError(
        f"a process that a rank has started called input({str(prompt)!r}): only the rank itself "
        "can ask. Ask before the process is started"
    )


def _become_child() -> None:
    """Restore the cell in this child; if that fails, end it as an uncaught error does."""
    builtins.input = _input
    write_tracebacks_without_ours()
    try:
        with warnings_without_ours():
            restore(globals(), json.loads(Path(os.environ[VARIABLE]).read_text()))
    except BaseException as error:  # noqa: BLE001 -- whatever a definition of the cell's raises
        traceback.print_exception(without_ours(error))  # raised on, it would get our frames again
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__mp_main__" and VARIABLE in os.environ:
    _become_child()
