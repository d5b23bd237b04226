"""Options against each other and against a machine of so many GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.machine.devices import Gpu
from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.resolve import resolve


def _resolve(line: str, gpus: int = 0) -> Options:
    there = [
        Gpu(visible=str(i), uuid=f"GPU-{i}-{os.getpid()}", name="T4", used_mib=0, total_mib=9)
        for i in range(gpus)
    ]
    options = resolve(parse_line("%%ddp", line), there)
    options.gpu_locks.release()
    return options


@pytest.mark.parametrize(
    ("line", "gpus", "ranks"),
    [
        ("", 0, 2),
        ("", 3, 3),
        ("-g 0,2", 3, 2),
        ("-g none", 3, 2),
        ("-n 5", 0, 5),
        ("-n gpu", 3, 3),
        ("-n auto", 3, 3),
        ("-n auto", 0, os.cpu_count()),
        ("-n cpu --backend gloo", 3, os.cpu_count()),
    ],
)
def test_numbers_of_ranks(line: str, gpus: int, ranks: int) -> None:
    assert _resolve(line, gpus).nproc == ranks


@pytest.mark.parametrize(
    ("line", "gpus", "message"),
    [
        ("-n gpu", 0, "nproc_per_node: gpu needs a GPU, and there is none here: use a number"),
        ("-n gpu -g none", 1, "nproc_per_node: gpu needs a GPU, and none was chosen: use a number"),
        ("-g 3", 0, "gpus: GPU 3 does not exist: no GPU is visible"),
        ("-g 1", 1, "gpus: GPU 1 does not exist: only GPU 0 is visible"),
        ("-g 3", 2, "gpus: GPU 3 does not exist: GPUs 0 to 1 are visible"),
        ("-g 0,0", 2, "gpus: GPU 0 is listed twice"),
        ("--backend nccl", 0, "backend: nccl needs a GPU for each rank, and there is none here"),
        ("-n 4", 1, "nproc_per_node: nccl needs a GPU for each rank, but there are 4 ranks and 1"),
        ("-n 99999999", 0, "nproc_per_node: 99,999,999 ranks are too many for this machine, which"),
        ("-n 2 --show 5", 0, "show: invalid rank 5: this run has ranks 0 to 1"),
        ("-n 1 --pull a@1", 0, "pull: invalid rank 1: this run has only rank 0"),
        ("--no-init --backend gloo", 0, "no_init: backend has no effect without a process group"),
        ("--no-init --timeout 3", 0, "no_init: timeout has no effect without a process group"),
        ("-o x --pull a.x", 0, "out: 'x' is pulled too: use another name for the run"),
        ("--bg --detach", 0, "bg: a detached run is in the background already: omit this option"),
        ("--bg -s lab", 0, "bg: the ranks of a session are the notebook's"),
        ("--detach -s lab", 0, "detach: the ranks of a session are the notebook's"),
        ("--bg --debug", 0, "bg: nobody could answer the debugger: omit this option or --debug"),
    ],
)
def test_contradictions(line: str, gpus: int, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        _resolve(line, gpus)
    assert str(caught.value).startswith(message)


def test_a_trace_goes_to_a_file_beside_the_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of the attempt to write it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert _resolve("--trace t.json").trace == tmp_path / "t.json"
    assert _resolve("--trace ~/t.json").trace == tmp_path / "home" / "t.json"
    assert not (tmp_path / "t.json").exists()
    (tmp_path / "old.json").write_text("{}")
    _resolve("--trace old.json")
    assert (tmp_path / "old.json").read_text() == "{}"
    assert _resolve("").trace is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/t.json", "no' is not a directory: create it, or use another file"),
        (".", "' is not a file: use another name"),
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
        _resolve(f"--trace {name}")
    assert caught.value.name == "trace"
    assert message in caught.value.problem
