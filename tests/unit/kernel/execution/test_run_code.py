"""The files of a run's code, as the ranks and as a person call them."""

from __future__ import annotations

import linecache
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.run_code import RunCode, cell_file
from ddp_magic.kernel.values.names import Names
from ddp_magic.wire.profile import Place

FUNCTIONS = {"/tmp/1.py": ["def f(): ...", 2], "/tmp/2.py": ["text", None]}


def _code(directory: Path, number: int | None = 5, **more: Any) -> RunCode:
    given: dict[str, Any] = {"cells": {}, "functions": {}, "is_call": False, **more}
    cell = Cell("x = 1\n", Names(frozenset(), frozenset()), number=number)
    return RunCode(cell, directory / "cell.py", **given)


def test_what_a_cell_calls_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the working directory that is not there, nor another cell's of the session."""
    monkeypatch.chdir(tmp_path)
    cell = Path("/runs/1127-1/cell.py")
    assert cell_file(cell, 5, set()) == str(tmp_path / "cell_5.py")
    assert cell_file(cell, None, set()) == str(tmp_path / "1127-1.py")
    (tmp_path / "cell_5.py").touch()
    assert cell_file(cell, 5, {str(tmp_path / "cell_5_2.py")}) == str(tmp_path / "cell_5_3.py")


def test_code_has_its_name_in_the_notebook(tmp_path: Path) -> None:
    """This cell, other cells of the session, and functions that were sent from the notebook."""
    code = _code(tmp_path, cells={"/o/cell_4.py": "g()\n"}, functions=FUNCTIONS)
    assert code.labels == {
        "/o/cell_4.py": "Cell In[4]", "/tmp/1.py": "Cell In[2]", code.file: "Cell In[5]"
    }  # fmt: skip
    assert (code.cell.label, code.cell.functions) == ("Cell In[5]", code.labels)
    assert _code(tmp_path, None).cell.label == "Cell"


def test_later_cells_of_the_session_have_other_files(tmp_path: Path) -> None:
    cells: dict[str, str] = {}
    files = [_code(tmp_path, cells=cells).file for _ in range(2)]
    assert [Path(file).name for file in files] == ["cell_5.py", "cell_5_2.py"]
    assert list(cells) == files


def test_a_profile_names_lines_of_other_cells_only(tmp_path: Path) -> None:
    """The lines of its own cell need no name."""
    code = _code(tmp_path, cells={"/o/cell_4.py": "def g(): ...\n"}, functions=FUNCTIONS)
    profiled = code.profiled()
    assert profiled.where(Place(code.file, 1)) == "line 1"
    assert profiled.where(Place("/o/cell_4.py", 1)) == "Cell In[4], line 1"
    assert profiled.where(Place("/tmp/1.py", 1)) == "Cell In[2], line 1"
    assert profiled.where(Place("/tmp/2.py", 1)) == "2.py, line 1"
    assert profiled.source(Place(code.file, 1)) == "x = 1"
    assert profiled.source(Place("/o/cell_4.py", 1)) == "def g(): ..."
    assert profiled.source(Place("/tmp/1.py", 1)) == "def f(): ..."


def test_the_text_of_the_cell_can_be_found(tmp_path: Path) -> None:
    code = _code(tmp_path)
    code.make_known()
    assert linecache.getline(code.file, 1) == "x = 1\n"
    del linecache.cache[code.file]
