"""The files of a run's code, as the ranks and as a person call them."""

from __future__ import annotations

import linecache
import os
from pathlib import Path

import pytest

from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.run_code import CodeFiles, RunCode
from ddp_magic.kernel.values.names import Names
from ddp_magic.wire.profile import Place

FUNCTIONS = {"/tmp/1.py": ["def f(): ...", 2], "/tmp/2.py": ["text", None]}


def _cell(number: int | None = 5, source: str = "x = 1\n") -> Cell:
    return Cell(source, Names(frozenset(), frozenset()), number=number)


def _code(directory: Path, number: int | None = 5, *, files: CodeFiles | None = None) -> RunCode:
    return RunCode(_cell(number), directory / "cell.py", files or CodeFiles(), is_call=False)


def _files_of_a_session(directory: Path) -> tuple[CodeFiles, str]:
    """Return the code of a session with one cell and two functions, and that cell's file."""
    files = CodeFiles()
    files.add_functions(FUNCTIONS)
    return files, files.add_cell(_cell(4, "def g(): ...\n"), directory / "cell.py")


def test_what_a_cell_calls_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the working directory that is not there, nor another cell's of the session."""
    monkeypatch.chdir(tmp_path)
    path, files = Path("/runs/1127-1/cell.py"), CodeFiles()
    assert files.add_cell(_cell(5), path) == str(tmp_path / "cell_5.py")
    assert files.add_cell(_cell(None), path) == str(tmp_path / "1127-1.py")
    (tmp_path / "cell_5_2.py").touch()
    assert files.add_cell(_cell(5), path) == str(tmp_path / "cell_5_3.py")
    assert files.add_cell(_cell(5), path) == str(tmp_path / "cell_5_4.py")
    (tmp_path / "cell_6.py").touch()
    assert files.add_cell(_cell(6), path) == str(tmp_path / "cell_6_2.py")


def test_the_next_cell_costs_no_more_than_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that runs one cell again and again does not ask for all the names of earlier ones."""
    monkeypatch.chdir(tmp_path)
    files = CodeFiles()
    for _ in range(300):
        files.add_cell(_cell(5), tmp_path / "cell.py")
    asked: list[object] = []
    monkeypatch.setattr(os.path, "lexists", asked.append)
    assert files.add_cell(_cell(5), tmp_path / "cell.py") == str(tmp_path / "cell_5_301.py")
    assert len(asked) == 1


def test_code_has_its_name_in_the_notebook(tmp_path: Path) -> None:
    """This cell, other cells of the session, and functions that were sent from the notebook."""
    files, earlier = _files_of_a_session(tmp_path)
    code = _code(tmp_path, files=files)
    assert dict(code.labels) == {
        earlier: "Cell In[4]", "/tmp/1.py": "Cell In[2]", code.file: "Cell In[5]"
    }  # fmt: skip
    assert (code.cell.label, code.cell.functions) == ("Cell In[5]", code.labels)
    assert _code(tmp_path, None).cell.label == "Cell"


def test_later_cells_of_the_session_have_other_files(tmp_path: Path) -> None:
    code = CodeFiles()
    files = [_code(tmp_path, files=code).file for _ in range(2)]
    assert [Path(file).name for file in files] == ["cell_5.py", "cell_5_2.py"]
    assert list(code.texts) == files


def test_a_profile_names_lines_of_other_cells_only(tmp_path: Path) -> None:
    """The lines of its own cell need no name."""
    files, earlier = _files_of_a_session(tmp_path)
    code = _code(tmp_path, files=files)
    profiled = code.profiled()
    assert profiled.where(Place(code.file, 1)) == "line 1"
    assert profiled.where(Place(earlier, 1)) == "Cell In[4], line 1"
    assert profiled.where(Place("/tmp/1.py", 1)) == "Cell In[2], line 1"
    assert profiled.where(Place("/tmp/2.py", 1)) == "2.py, line 1"
    assert profiled.source(Place(code.file, 1)) == "x = 1"
    assert profiled.source(Place(earlier, 1)) == "def g(): ..."
    assert profiled.source(Place("/tmp/1.py", 1)) == "def f(): ..."


def test_the_text_of_the_cell_can_be_found(tmp_path: Path) -> None:
    code = _code(tmp_path)
    code.make_known()
    assert linecache.getline(code.file, 1) == "x = 1\n"
    del linecache.cache[code.file]
