"""The groups of a rank: their timeouts, which stand still while a person answers; their number."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.worker.process_group import FOREVER, ProcessGroups
from ddp_magic.worker.watch.torch_records import note_groups

S20, S30 = timedelta(seconds=20), timedelta(seconds=30)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ProcessGroups]:
    """The groups of a rank that is alone."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    for module in (dist, distributed_c10d):
        for name in ("init_process_group", "destroy_process_group"):
            monkeypatch.setattr(module, name, getattr(module, name))
    helper = distributed_c10d._new_process_group_helper
    monkeypatch.setattr(distributed_c10d, "_new_process_group_helper", helper)
    handlers = sys.modules["torch.distributed.rendezvous"]._rendezvous_handlers
    monkeypatch.setitem(handlers, "env", handlers["env"])
    made = ProcessGroups(RunDirectory(tmp_path), backend="gloo", timeout=S30)
    made.init()
    yield made
    if dist.is_initialized():
        dist.destroy_process_group()


def _timeout(group: Any = None) -> timedelta:
    group = group or dist.group.WORLD
    found: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    return found


@pytest.mark.usefixtures("groups")
def test_who_meets_by_the_environment_has_the_ranks_store() -> None:
    """Whatever MASTER_PORT says; as torchrun's agent has it for all of its ranks."""
    (one, *numbers), (other, *_) = (next(dist.rendezvous("env://")) for _ in range(2))
    one.set("key", "value")
    assert other.get("key") == b"value"
    assert numbers == [0, 1]


@pytest.mark.usefixtures("groups")
def test_another_world_meets_as_torch_has_it() -> None:
    """It says itself where."""
    with pytest.raises(ValueError, match="MASTER_ADDR expected, but not set"):
        next(dist.rendezvous("env://", rank=0, world_size=2))


def test_collectives_wait_for_ever_while_timeouts_are_held(groups: ProcessGroups) -> None:
    other = dist.new_group([0], timeout=S20)
    groups.hold_timeouts()
    groups.hold_timeouts()
    assert (_timeout(), _timeout(other)) == (FOREVER, FOREVER)
    groups.release_timeouts()
    assert (_timeout(), _timeout(other)) == (S30, S20)
    groups.release_timeouts()
    assert _timeout() == S30


def test_a_group_that_is_made_meanwhile(groups: ProcessGroups) -> None:
    groups.hold_timeouts()
    made = dist.new_group([0], timeout=S20)
    assert _timeout(made) == FOREVER
    groups.release_timeouts()
    assert _timeout(made) == S20


def test_the_cells_own_default_group(groups: ProcessGroups) -> None:
    groups.hold_timeouts()
    dist.init_process_group("gloo", timeout=S20)
    assert _timeout() == FOREVER
    groups.release_timeouts()
    assert _timeout() == S20


@pytest.mark.parametrize(
    ("backend", "name"), [("foo", "foo"), ("cpu:gloo,cuda:foo", "foo"), ("cpu:", "")]
)
@pytest.mark.usefixtures("groups")
def test_a_backend_that_torch_does_not_have(tmp_path: Path, backend: str, name: str) -> None:
    """The message lists those that it has."""
    wrong = ProcessGroups(RunDirectory(tmp_path), backend=backend, timeout=S30)
    with pytest.raises(ValueError, match=f"^invalid backend '{name}': use .*gloo"):
        wrong.init()


def test_a_rank_without_a_group(groups: ProcessGroups) -> None:
    dist.destroy_process_group()
    groups.hold_timeouts()
    groups.release_timeouts()


@pytest.mark.usefixtures("groups")
def test_a_group_that_was_gone_before_anyone_looked_is_counted() -> None:
    """It stays in torch's record, whose size tells when a new group has entered it."""
    before = note_groups([])
    dist.destroy_process_group(dist.new_group([0]))
    assert note_groups([]) == before + 1
