"""`--write`: the script of a cell, and the file beside it for values that are no text."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Collection
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

from ddp_magic.kernel.cell import Cell, environment_set
from ddp_magic.kernel.options.contradictions import check_written
from ddp_magic.kernel.options.declaration import OPTIONS
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.options.trace_file import writable
from ddp_magic.kernel.script import body, travel
from ddp_magic.kernel.script.command import command, folders_of_modules, visible_gpus
from ddp_magic.kernel.script.sources import statements
from ddp_magic.kernel.script.text import Script, imported, imported_modules
from ddp_magic.kernel.values.capture import Notebook
from ddp_magic.wire.memory import size_words

_FIRST_LINE = re.compile(r'"""(A cell|Cell In\[\d+\]), written by %%ddp --write\.')
_DEFAULTS = {option.name: option.default for option in OPTIONS}


def write(cell: Cell, asked: SimpleNamespace, notebook: Notebook, option: str) -> list[str]:
    """Write a cell's script; return what to say.

    Args:
        cell: The cell.
        asked: The options' values.
        notebook: The notebook's names.
        option: What messages call `--capture`.

    Raises:
        OptionError: The options or the cell have no equivalent, or the file cannot be written.
        CaptureError: A value cannot be written.
    """
    check_written(asked, _DEFAULTS)
    path = _checked_path(asked.write)
    shown = str(path) if asked.write.startswith("~") else asked.write
    tree = ast.parse(cell.source)
    modules = {module.partition(".")[0] for module in [*sys.modules, *imported_modules(tree)]}
    line = command(asked, shown, visible_gpus(), folders_of_modules(path, modules))
    if problem := body.problem_of(tree, cell.source):
        raise OptionError("write", problem)
    needed = notebook.needed(cell.names, asked.capture, option)
    files = notebook.cell_files()
    sources = travel.sources_of(needed, notebook.names, files)
    if reader := needed.stream.read_by.get("get_ipython"):
        problem = f"`{reader}` uses IPython (%, ! or get_ipython()), which a script does not have"
        raise OptionError("write", f"{problem}: write it in plain Python")
    written = ast.Module([node for file in files for node in statements(file)], [])
    imports = [n for n in written.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    plain = [a for n in imports if isinstance(n, ast.Import) for a in n.names if a.asname is None]
    homes = dict(imported(ast.Module([*imports], [])))
    environment = {n: v for n, v in environment_set(written).items() if os.environ.get(n) == v}
    if asked.gpus is not None:
        environment.pop("CUDA_VISIBLE_DEVICES", None)  # the command sets it
    cell = replace(cell, environment={**environment, **cell.environment})
    script = Script(cell, asked, needed, travel.plan(needed, sources, notebook.names, homes), plain)
    text = script.text(line)
    _check_name(path, script.imports.modules() | imported_modules(tree))
    _replace(path, text, script.travel.payload)
    size = f", with {Path(shown).with_suffix('.pkl')} ({size_words(len(script.travel.payload))})"
    return [
        *notebook.hidden_notes(needed.rank_names),
        f"{shown}{size if script.travel.payload else ''}: {line}",
        *(["run this on each node; HOST is the name of one of them"] if "HOST:" in line else []),
    ]


def _checked_path(name: str) -> Path:
    """Return the path of the script.

    Raises:
        OptionError: It is not a script's, or there is a file that `--write` has not written.
    """
    if Path(name).suffix != ".py" and not Path(name).is_dir():
        raise OptionError("write", f"invalid file name {name!r}: use a path such as train.py")
    path = writable("write", name)
    values = path.with_suffix(".pkl")
    old = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if path.exists() and not _FIRST_LINE.match(old):
        raise OptionError("write", f"{name!r} exists, and --write has not written it: {_OTHER}")
    if values.exists() and not _loads_values(old):
        problem = f"{str(values)!r}, where its values would be, exists: {_OTHER}"
        raise OptionError("write", problem)
    return path


_OTHER = "use another name, or remove it"


def _loads_values(script: str) -> bool:
    return 'with_suffix(".pkl")' in script


def _check_name(path: Path, imported: Collection[str]) -> None:
    """Check that the script hides no module: Python looks in its folder first.

    Raises:
        OptionError: It does.
    """
    spec = PathFinder.find_spec(path.stem) if path.stem.isidentifier() else None
    other = spec and spec.origin and Path(spec.origin).resolve() != path.resolve()
    if path.stem in sys.stdlib_module_names or path.stem in imported or other:
        problem = f"{path.name} would hide the module {path.stem} from all imports"
        raise OptionError("write", f"{problem}: use another name")


def _replace(path: Path, text: str, payload: bytes) -> None:
    """Write the script and its values, both or none.

    Raises:
        OptionError: They cannot be written.
    """
    new = {path: text.encode("utf-8", "surrogatepass")}
    values = path.with_suffix(".pkl")
    if payload:
        new[values] = payload
    parts = {file: file.with_name(f".{file.name}.{os.getpid()}") for file in new}
    try:
        for file, content in new.items():
            parts[file].write_bytes(content)
        for file in reversed(parts):  # the script last
            parts[file].replace(file)
        if not payload:
            values.unlink(missing_ok=True)  # of the script that this one replaces
    except OSError as error:
        raise OptionError("write", f"{str(path)!r} cannot be written ({error.strerror})") from None
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
