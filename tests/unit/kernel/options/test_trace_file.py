"""The file of `--trace`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.options.trace_file import trace_file


def _trace_file(line: str) -> Path | None:
    return trace_file(parse_line("%%ddp", line))


def test_a_trace_goes_to_a_file_beside_the_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of the attempt to write it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert _trace_file("--trace t.json") == tmp_path / "t.json"
    assert _trace_file("--trace ~/t.json") == tmp_path / "home" / "t.json"
    assert not (tmp_path / "t.json").exists()
    (tmp_path / "old.json").write_text("{}")
    _trace_file("--trace old.json")
    assert (tmp_path / "old.json").read_text() == "{}"
    assert _trace_file("") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/t.json", "no' is not a directory: create it, or use another file"),
        (".", "' is a directory: use another name"),
        ("/dev/null", "'/dev/null' is not a file: use another name"),
        ("/proc/t.json", "'/proc/t.json' cannot be written ("),
        ("~nobody_of_this_name/t.json", "cannot be written ("),
    ],
)
def test_a_trace_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError) as caught:
        _trace_file(f"--trace {name}")
    assert caught.value.name == "trace"
    assert message in caught.value.problem
