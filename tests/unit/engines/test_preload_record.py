"""What is learned from forkservers that have ended."""

from __future__ import annotations

import signal

from ddp_magic.engines.preload_record import MAX_CULPRITS, MAX_DEATHS, PreloadRecord
from ddp_magic.wire.events import SOME_LIBRARY, ForkObstacle, Preloaded

THREADS = "it starts threads"


def _obstacle(module: str) -> ForkObstacle:
    return ForkObstacle(module=module, reason=THREADS)


def test_nothing_is_tried_before_a_library_has_done_harm() -> None:
    """Trials cost time; most libraries do no harm."""
    record = PreloadRecord()
    record.trust("good")
    assert record.trusted is None
    assert not record.add_obstacle(_obstacle("bad")).final
    assert record.trusted == ["good"]


def test_a_library_that_the_trial_did_not_find_out_is_left_out() -> None:
    """It has cost two forkservers."""
    record = PreloadRecord()
    record.want(["bad"])
    record.add_obstacle(_obstacle("bad"))
    assert record.left_out == {}
    record.add_obstacle(_obstacle("bad"))
    assert record.left_out == {"bad": THREADS}


def test_an_unknown_culprit_has_all_tried() -> None:
    """Any of those that were trusted may have begun CUDA."""
    record = PreloadRecord()
    record.trust("one")
    record.add_obstacle(_obstacle(SOME_LIBRARY))
    assert record.trusted == []
    assert list(record.wanted) == []


def test_an_obstacle_without_a_library_is_final() -> None:
    """Any other forkserver would meet it."""
    death = PreloadRecord().add_obstacle(ForkObstacle(module="", reason="torch has begun CUDA"))
    assert death.final
    assert "torch has begun CUDA" in death.reason


def test_many_culprits() -> None:
    """Then only torch is imported; if a forkserver is lost nevertheless, there is no other."""
    record = PreloadRecord()
    for n in range(MAX_CULPRITS):
        assert not record.add_obstacle(_obstacle(f"lib{n}")).final
        assert not record.only_torch
    assert not record.add_obstacle(_obstacle("one more")).final
    assert record.only_torch
    assert "*" in record.left_out
    assert record.add_obstacle(_obstacle("and another")).final


def test_deaths_in_a_row() -> None:
    """The user is told of the first; after some there is no other forkserver."""
    record = PreloadRecord()
    deaths = [record.add_death("", 1) for _ in range(MAX_DEATHS + 1)]
    assert [death.first for death in deaths] == [True, *[False] * MAX_DEATHS]
    assert [death.final for death in deaths] == [*[False] * MAX_DEATHS, True]
    assert deaths[0].reason == "the forkserver died (exit code 1)"


def test_a_forkserver_that_was_of_use_ends_the_row() -> None:
    """Its death is the first of another."""
    record = PreloadRecord()
    record.add_death("", 1)
    record.update(Preloaded(files={}, number=1))
    assert record.add_death("", 1).first


def test_a_kill_from_outside_is_not_blamed_on_the_library() -> None:
    """Once; the second time it is."""
    record = PreloadRecord()
    record.add_death("lib", -signal.SIGKILL)
    assert record.trusted is None
    record.add_death("lib", -signal.SIGKILL)
    assert record.trusted == []


def test_what_a_left_out_library_imports_is_wanted() -> None:
    """The next forkserver does not try the library, and so imports these by themselves."""
    record = PreloadRecord()
    record.trust("outer")
    record.update(
        Preloaded(files={}, number=1, left_out={"outer": THREADS}, good=("inner", "deeper"))
    )
    record.add_obstacle(_obstacle("bad"))
    assert record.trusted == ["deeper", "inner"]
    assert list(record.wanted) == ["inner", "deeper", "bad"]
    assert record.left_out == {"outer": THREADS}


def test_another_environment() -> None:
    """What happened in the one is no reason in the other."""
    record = PreloadRecord()
    for _ in range(MAX_DEATHS + 1):
        record.add_death("lib", 1)
    record.forgive()
    assert record.trusted is None
    assert record.add_death("", 1).first
