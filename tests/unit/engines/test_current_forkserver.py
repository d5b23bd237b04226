"""Whether there is a forkserver, and whether there may be another; it only listens here."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddp_magic.engines.current_forkserver import CurrentForkserver
from ddp_magic.engines.forkserver import unsupported
from tests.unit.engines.test_local import TALK

pytestmark = pytest.mark.skipif(bool(unsupported()), reason="no forkserver here")

LISTENS = textwrap.dedent(TALK) + "[*iter(channel.receive, None)]"


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CurrentForkserver]:
    monkeypatch.setenv("LIVES", str(tmp_path / "lives"))
    current = CurrentForkserver([sys.executable, "-c", LISTENS], lambda: None)
    yield current
    current.close(at_once=True)


def test_one_runs_until_it_is_closed(current: CurrentForkserver) -> None:
    """And no other one is started then."""
    assert not current.used
    assert current.status().state == "not started"
    current.launch()
    first = current.now
    assert first is not None
    assert current.used
    current.launch()
    assert current.now is first
    current.close(at_once=True)
    current.launch()
    assert current.now is None
    assert current.status().state == "off: off"


def test_one_in_another_environment_takes_its_place(current: CurrentForkserver) -> None:
    """The start says why it is slow, once."""
    env = dict(os.environ)
    current.launch(env)
    first = current.now
    current.retire_if_out_of_date(sys.path, env)
    assert current.now is first
    assert current.take_slow_start() == ""
    current.retire_if_out_of_date(sys.path, {**env, "A": "2"})
    assert current.now is None
    assert current.take_slow_start() == "A changed: reimporting the preloaded libraries"
    assert current.take_slow_start() == ""
    assert first is not None
    first.kill()


def test_why_one_has_died(current: CurrentForkserver) -> None:
    """The first time in a row it is told."""
    current.launch()
    assert current.now is not None
    current.now.kill()
    death = current.bury(current.now)
    assert death is not None
    assert death.reason == "the forkserver died (killed by SIGKILL)"
    assert (death.first, death.final) == (True, False)
    assert current.now is None


def test_what_was_given_up_is_tried_again_in_another_environment(
    current: CurrentForkserver,
) -> None:
    env = dict(os.environ)
    current.give_up("it died", env)
    current.try_again(env)
    assert current.off == "it died"
    current.try_again({**env, "A": "2"})
    assert current.off == ""
