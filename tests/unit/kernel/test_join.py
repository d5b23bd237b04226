"""Options of a later cell of a session, against those that its first cell has decided."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_magic.kernel.controller import Controller
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.session import Session
from ddp_magic.kernel.values.capture import Notebook
from tests.unit.fakes import FakeGroup

ADVICE = "omit the option, run %ddp_stop lab first, or use another session name"


def _join(line: str) -> Options | None:
    controller = Controller(Notebook({}))
    fixed = {"backend": "gloo", "timeout": 30.0}
    options = Options(nproc=2, session="lab", backend="gloo", fixed=fixed)
    controller.sessions.add(Session(options, FakeGroup(Path("unused"))))  # type: ignore[arg-type]
    return controller.join(parse_line("%%ddp", line))


def test_a_later_cell_has_the_sessions_ranks_and_its_own_options() -> None:
    options = _join("-s lab --time-limit 5 --show 1 -- --lr 1")
    assert options is not None
    assert (options.nproc, options.backend, options.session) == (2, "gloo", "lab")
    assert (options.time_limit_s, options.show) == (5, frozenset({1}))
    assert options.argv == ("--lr", "1")
    assert _join("-s lab -n 2") is not None


def test_the_first_cell_may_run_again() -> None:
    """With the options that it was written with."""
    assert _join("-s lab -n 2 --backend gloo --timeout 30") is not None


def test_other_cells_do_not_join() -> None:
    assert _join("-n 3") is None
    assert _join("-n 3 -s other") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-n 3", f"nproc_per_node: session 'lab' already runs with 2 ranks: {ADVICE}"),
        *[
            (line, f"{name}: session 'lab' is already running: {ADVICE}")
            for line, name in (
                ("-g none", "gpus"),
                ("--backend mpi", "backend"),
                ("--timeout 3", "timeout"),
                ("--cold", "cold"),
            )
        ],
        ("--pull x -o x", "out: 'x' is pulled too: use another name for the run"),
        ("--pull x@2", "pull: invalid rank 2: this run has ranks 0 to 1"),
        ("--show 2", "show: invalid rank 2: this run has ranks 0 to 1"),
    ],
)
def test_contradictions(line: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        _join(f"-s lab {line}")
    assert str(caught.value) == message
