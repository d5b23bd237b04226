"""What a run is asked for, and the ranks that it describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.kernel.execution.run_options import Options, group_of
from ddp_magic.kernel.options.arguments import parse_keywords, parse_line
from ddp_magic.kernel.options.declaration import KEYWORDS
from ddp_magic.kernel.resolve import resolve
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.specs import AgentSpec
from tests.unit.kernel.scene import FakeAgent


class Recorder:
    """An engine that keeps what an agent was to run."""

    def __init__(self) -> None:
        self.specs: list[AgentSpec] = []

    def start(self, spec: AgentSpec, _env: dict[str, str]) -> FakeAgent:
        self.specs.append(spec)
        return FakeAgent()


def _spec(options: Options, directory: Path) -> AgentSpec:
    """Return what the agent of these options is asked for."""
    engine = Recorder()
    group = group_of(options, RunDirectory(directory))
    group.start(engine, {}, [], ())
    group.close()
    (spec,) = engine.specs
    return spec


def test_a_run_needs_only_a_number_of_ranks(tmp_path: Path) -> None:
    """Everything else is as if nothing were asked for: the CPU, ranks of its own, a group."""
    spec = _spec(Options(nproc=3), tmp_path)
    assert (spec.nproc, spec.worker.device) == (3, "cpu")
    assert (spec.worker.backend, spec.worker.timeout_s) == (None, None)
    assert spec.worker.init_process_group
    assert not spec.worker.kept


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        ({"device": "cuda"}, lambda spec: spec.worker.device),
        ({"backend": "gloo"}, lambda spec: spec.worker.backend),
        ({"timeout_s": 3.5}, lambda spec: spec.worker.timeout_s),
        ({"init_process_group": False}, lambda spec: spec.worker.init_process_group),
    ],
)
def test_what_is_asked_of_the_ranks_reaches_them(
    asked: dict[str, Any], read: Callable[[AgentSpec], object], tmp_path: Path
) -> None:
    (value,) = asked.values()
    assert read(_spec(Options(nproc=1, **asked), tmp_path)) == value


def test_a_sessions_ranks_are_kept(tmp_path: Path) -> None:
    assert _spec(Options(nproc=1, session="lab"), tmp_path).worker.kept


def test_options_are_written_as_their_caller_writes_them() -> None:
    """In a message: flags of the magic's line, keywords of a call."""
    magic, call = Options(nproc=1), Options(nproc=1, from_python=True)
    for name in KEYWORDS:
        assert magic.spelled(name).startswith("--")
        assert call.spelled(name) == name
    assert magic.spelled("time_limit") == "--time-limit"


def test_a_magics_line_and_a_call_ask_for_the_same() -> None:
    line = parse_line("%%ddp", "-n 2 -g none --time-limit 5 --show 1 --pull a@all --seed 3 -- x")
    call = parse_keywords(
        {
            "nproc_per_node": 2, "gpus": "none", "time_limit": 5, "show": [1], "pull": ["a@all"],
            "seed": 3, "argv": ["x"],
        }
    )  # fmt: skip
    assert resolve(line, visible=[]) == resolve(call, visible=[])


def test_options_do_not_change() -> None:
    """A session's later cells are compared with them."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options(nproc=1).nproc = 2  # type: ignore[misc]
