"""Options that contradict each other, whatever the machine has."""

from __future__ import annotations

import pytest

from ddp_magic.kernel.options import contradictions
from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.options.option import OptionError


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--no-init --backend gloo", "no_init: backend has no effect without a process group"),
        ("--no-init --timeout 3", "no_init: timeout has no effect without a process group"),
        ("-o x --pull a.x", "out: 'x' is pulled too: use another name for the run"),
    ],
)
def test_of_any_run(line: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        contradictions.check(parse_line("%%ddp", line))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("line", "nproc", "message"),
    [
        ("--show 5", 2, "show: invalid rank 5: this run has ranks 0 to 1"),
        ("--pull a@1", 1, "pull: invalid rank 1: this run has only rank 0"),
        ("-s lab --max-restarts 1", 2, "max_restarts: restarted ranks would not have the variabl"),
        ("--bg --detach", 2, "bg: a detached run is in the background already: omit this option"),
        ("--bg -s lab", 2, "bg: the ranks of a session are the notebook's"),
        ("--detach -s lab", 2, "detach: the ranks of a session are the notebook's"),
        ("--bg --debug", 2, "bg: nobody could answer the debugger: omit this option or --debug"),
    ],
)
def test_of_so_many_ranks(line: str, nproc: int, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        contradictions.check_ranks(parse_line("%%ddp", line), nproc)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("line", ["", "--show 1 --pull a@1,b@all", "-s lab", "--detach"])
def test_what_goes_together(line: str) -> None:
    asked = parse_line("%%ddp", line)
    contradictions.check(asked)
    contradictions.check_ranks(asked, 2)
