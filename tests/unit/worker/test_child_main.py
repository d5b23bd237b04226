"""What multiprocessing children of a rank get of the cell."""

from __future__ import annotations

import ast
import inspect
import json
import multiprocessing.spawn
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.system.definitions import definitions
from ddp_magic.worker.child_main import VARIABLE, restore
from ddp_magic.worker.inheritance import Inheritance, MainSpec

CELL = """\
import os
SIZE = 8
PATH: str = "x"
model = build()
class Data:
    size = SIZE
def f(): return model
if __name__ == "__main__":
    f()
print("ran")
"""


def _left(*cells: Path) -> dict[str, list[object]]:
    return {"cells": [*map(str, cells)], "prelude": [], "captured": []}


def test_only_definitions_and_literals() -> None:
    """Imports, functions, classes, constants; nothing that computes."""
    kinds = [type(node).__name__ for node in definitions(CELL).body]
    assert kinds == ["Import", "Assign", "AnnAssign", "ClassDef", "FunctionDef"]
    assert isinstance(definitions("x: int").body, list)
    assert ast.unparse(definitions("x = -1")) == "x = -1"
    kept = definitions("a, (b, c) = 1, (2, 3)\nconfig.lr = 1\nd[0] = 1\ne.f: int = 1")
    assert ast.dump(kept) == ast.dump(ast.parse("a, (b, c) = 1, (2, 3)"))


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("SIZE = 4 * 16\nAREA = SIZE ** 2", ["SIZE", "AREA"]),
        ("A, B = 1 << 3, 'a' * 2\nC = {'x': [A, -B.count]}", ["A", "B"]),
        ("try:\n    import os as m\nexcept ImportError:\n    m = None", ["m"]),
        ("import sys\nif sys.version_info >= (3,):\n    from os import path as p", ["sys", "p"]),
        ("if __name__ == '__main__':\n    import os", []),
        ("x = make()\ny = x + 1\nif make():\n    import os", []),
        ("try:\n    import os\n    make()\nexcept OSError:\n    pass", []),
        ("n = 2\nname = f'{n}.pt'\nbig = n > 1 and not None", ["n", "name", "big"]),
        ("try:\n    import no_such\nexcept ImportError:\n    m = make = int()", ["m", "make"]),
        ("T: int = 3 * 2\nfor i in range(3): pass", ["T"]),
    ],
)
def test_constants_and_guarded_imports(tmp_path: Path, source: str, kept: list[str]) -> None:
    """What costs nothing to evaluate; nothing is called."""
    (tmp_path / "cell.py").write_text(source)
    own = ("__annotations__", "__annotate__")
    namespace: dict[str, object] = {"__name__": "__mp_main__"}
    restore(namespace, _left(tmp_path / "cell.py"))
    assert sorted(set(namespace) - {"__name__", "__file__", "__builtins__", *own}) == sorted(kept)


def test_restored_definitions_have_the_cells_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Functions work, know their file, and the cell has not run."""
    path = tmp_path / "cell.py"
    path.write_text(CELL)
    namespace: dict[str, object] = {"__name__": "__mp_main__"}
    restore(namespace, _left(path))
    assert namespace["Data"].size == 8  # type: ignore[attr-defined]
    assert namespace["f"].__code__.co_filename == str(path)  # type: ignore[attr-defined]
    assert capsys.readouterr().out == ""


def test_a_definition_that_needs_the_cell_is_explained(tmp_path: Path) -> None:
    """The NameError says what a child has."""
    path = tmp_path / "cell.py"
    path.write_text("base = make()\nclass A(base): pass")
    with pytest.raises(NameError, match="and the notebook's values that the cell uses"):
        restore({}, _left(path))


def test_the_cells_before_it(tmp_path: Path) -> None:
    """A session's earlier definitions are there, but for those that needed their cell."""
    earlier, now = tmp_path / "1.py", tmp_path / "2.py"
    earlier.write_text("SIZE = 1\nclass A(make()): pass\ndef f(): return SIZE")
    now.write_text("SIZE = 2")
    namespace: dict[str, object] = {}
    restore(namespace, _left(earlier, now))
    assert namespace["f"]() == 2  # type: ignore[operator]
    assert "A" not in namespace


def test_what_is_defined_anew_is_left_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that is run again and again in a session does not add up."""
    monkeypatch.setenv(VARIABLE, "")
    left = tmp_path / "children.json"
    inheritance = Inheritance(left)
    for number, text in enumerate(["def f(): 1\ndef g(): 2", "def f(): 3", "def f(): 4", "f()"]):
        path = tmp_path / f"{number}.py"
        path.write_text(text)
        inheritance.add_cell(str(path), ())
    inheritance.write()
    paths = [Path(path).name for path in json.loads(left.read_text())["cells"]]
    assert paths == ["0.py", "2.py", "3.py"]
    for stream, names in enumerate(["ab", "b", "a"]):
        entry = {"command": {"stream": stream}, "segments": [stream]}
        inheritance.add_captured(entry, names)
        assert inheritance.drop_captured(()) == [{0}, {0, 1}, {1, 2}][stream]


def test_it_is_written_when_multiprocessing_starts_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its preparation of a child reads the main module's name (Python 3.10 to 3.14)."""
    monkeypatch.setenv(VARIABLE, "")
    left = tmp_path / "children.json"
    inheritance = Inheritance(left)
    main = types.ModuleType("__main__")
    main.__spec__ = MainSpec(inheritance)
    monkeypatch.setitem(sys.modules, "__main__", main)
    for number in range(2):
        path = tmp_path / f"{number}.py"
        path.write_text(f"x{number} = 1")
        inheritance.add_cell(str(path), ())
        assert str(path) not in (left.read_text() if left.exists() else "")
        prepared = multiprocessing.spawn.get_preparation_data("child")
        assert prepared["init_main_from_name"] == "ddp_magic.worker.child_main"
        assert str(path) in json.loads(left.read_text())["cells"]
        assert os.environ[VARIABLE] == str(left)


def test_a_cell_whose_run_has_been_removed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child of a long session starts without it."""
    monkeypatch.setenv(VARIABLE, "")
    now = tmp_path / "now.py"
    now.write_text("x = 1")
    inheritance = Inheritance(tmp_path / "children.json")
    inheritance.add_cell(str(tmp_path / "gone.py"), ())
    inheritance.add_cell(str(now), ())
    inheritance.write()
    assert json.loads((tmp_path / "children.json").read_text())["cells"] == [str(now)]


def test_restored_definitions_go_by_the_cells_own_name(tmp_path: Path) -> None:
    """`__file__` and the code's file; the text is found under it, where there is no such file."""
    path, name = tmp_path / "cell.py", "/notebooks/cell_5.py"
    path.write_text("def f(): return __file__")
    namespace: dict[str, Any] = {"__name__": "__mp_main__"}
    restore(namespace, {**_left(path), "files": {str(path): name}})
    assert namespace["f"]() == namespace["f"].__code__.co_filename == name
    assert inspect.getsource(namespace["f"]) == "def f(): return __file__\n"


@pytest.mark.parametrize(
    "cell", ["class A(make()): pass", "def deco(f): 1 / 0\n@deco\ndef g(): pass", "import no_such"]
)
def test_a_child_that_cannot_be_made_shows_the_cell_only(tmp_path: Path, cell: str) -> None:
    """No frame of ours, and none of the machinery between; it ends with code 1."""
    (tmp_path / "cell.py").write_text(cell)
    (tmp_path / "left.json").write_text(json.dumps(_left(tmp_path / "cell.py")))
    run = "import runpy; runpy.run_module('ddp_magic.worker.child_main', run_name='__mp_main__')"
    done = subprocess.run(
        [sys.executable, "-c", run],
        env={**os.environ, VARIABLE: str(tmp_path / "left.json")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f'File "{tmp_path}/cell.py", line ' in done.stderr
    assert not re.search(r"child_main|runpy", done.stderr), done.stderr


def test_the_ranks_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a script, which reads them from the environment; a constant of the cell wins."""
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    cell = tmp_path / "cell_5.py"
    cell.write_text("import torch\ndef f(d=device): return rank, local_rank, world_size, device, d")
    namespace: dict[str, Any] = {}
    restore(namespace, {**_left(cell), "device": "cuda:1"})
    assert [str(value) for value in namespace["f"]()] == ["3", "1", "4", "cuda:1", "cuda:1"]
    cell.write_text("device = 'mine'\ndef f(): return device")
    restore(namespace := {}, {**_left(cell), "device": "cuda:1"})
    assert namespace["f"]() == "mine"
