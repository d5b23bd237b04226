"""What `--pull` asks for, and the values that arrive."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddp_magic.kernel.values.pull import Pull, Pulls, parse
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.worker_events import Results
from ddp_magic.worker.values import sent_values


def test_names_ranks_and_attributes() -> None:
    pulls = parse("a, b@all,c@2,trainer.state")
    assert pulls == (Pull("a", 0), Pull("b", None), Pull("c", 2), Pull("trainer.state", 0))
    assert [pull.name for pull in pulls] == ["a", "b", "c", "state"]
    assert ",".join(map(str, pulls)) == "a,b@all,c@2,trainer.state"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid name"),
        ("a,,b", "invalid name"),
        ("1a", "invalid name"),
        ("a.", "invalid name"),
        ("a@", "invalid rank '' in"),
        ("a@-1", "invalid rank '-1' in"),
        ("a,x.a", "would be bound to 'a'"),
    ],
)
def test_invalid_lists_of_names(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)


# --- the values -----------------------------------------------------------------------------------


def _pulled(pulls: Pulls, ranks: Sequence[dict[str, Any]], directory: RunDirectory) -> None:
    """Let ranks with these namespaces send what was asked of them."""
    for rank, namespace in enumerate(ranks):
        paths = [p.path for p in pulls.asked if p.rank in (rank, None)]
        event, segment = sent_values.send(rank, paths, namespace, directory)
        pulls.take(event, segment.fd if segment is not None else None)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def _finish(pulls: Pulls) -> tuple[object, list[str]]:
    """Return the values of a run that succeeded, and a line for each that is missing."""
    found, missing = pulls.finish(succeeded=True)
    return found, [] if missing is None else str(missing).split("; `")


def test_values_by_their_names(directory: RunDirectory) -> None:
    """From rank 0, from all as a list, from one, and an attribute by its own name."""
    pulls = Pulls(parse("a,b@all,c@1,trainer.state"), 2, directory)
    trainer = types.SimpleNamespace(state={"step": 7})
    ranks = [{"a": f"{r}a", "b": 10 * r, "c": [r], "trainer": trainer} for r in range(2)]
    _pulled(pulls, ranks, directory)
    assert pulls.finish(succeeded=True) == (
        {"a": "0a", "b": [0, 10], "c": [1], "state": {"step": 7}},
        None,
    )


def test_arrays_are_whole_writable_and_shared(directory: RunDirectory) -> None:
    """Two names of one array are one array."""
    pulls = Pulls(parse("array,again"), 1, directory)
    array = np.arange(1e5)
    _pulled(pulls, [{"array": array, "again": [array]}], directory)
    found, _ = pulls.finish(succeeded=True)
    assert found is not None
    found["array"][0] = 5
    assert found["again"][0] is found["array"]
    assert found["array"].sum() == array.sum() + 5


def test_what_is_missing_is_named(directory: RunDirectory) -> None:
    """With the reason of the rank; the others arrive."""
    pulls = Pulls(parse("best,other,x.y@1,z@all"), 2, directory)
    _pulled(pulls, [{"other": 1, "z": 1}, {"x": 1}], directory)
    found, missing = _finish(pulls)
    assert found == {"other": 1}
    assert missing == [
        "`best` of rank 0 was never set",
        "x.y` of rank 1 cannot be read: AttributeError: 'int' object has no attribute 'y'",
        "z` of rank 1 was never set",
    ]


def test_a_rank_that_has_sent_nothing(directory: RunDirectory) -> None:
    pulls = Pulls(parse("a@all"), 2, directory)
    _pulled(pulls, [{"a": 1}], directory)
    found, missing = _finish(pulls)
    assert found == {}
    assert missing == ["`a` of rank 1 did not arrive"]


def test_what_the_notebook_cannot_read_is_saved(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a process that can import its module."""
    library: Any = types.ModuleType("only_there")
    library.Thing = type("Thing", (), {"__module__": "only_there", "size": 3})
    pulls = Pulls(parse("thing"), 1, directory)
    with monkeypatch.context() as there:
        there.setitem(sys.modules, "only_there", library)
        event, segment = sent_values.send(0, ["thing"], {"thing": library.Thing()}, directory)
    assert segment is not None
    pulls.take(event, segment.fd)
    found, (why,) = _finish(pulls)
    assert found == {}
    saved = directory.unread_results(0)
    assert why.startswith("`thing` of rank 0 cannot be read in the notebook (ModuleNotFoundError")
    assert why.endswith(f"it was saved: pickle.load(open({str(saved)!r}, 'rb'))")
    monkeypatch.setitem(sys.modules, "only_there", library)
    assert pickle.loads(saved.read_bytes())["thing"].size == 3


class _Exits:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def test_a_value_that_exits_when_it_is_read(directory: RunDirectory) -> None:
    """It ends neither the cell nor the kernel."""
    pulls = Pulls(parse("thing"), 1, directory)
    _pulled(pulls, [{"thing": _Exits()}], directory)
    found, (why,) = _finish(pulls)
    assert found == {}
    assert why.startswith("`thing` of rank 0 cannot be read in the notebook (System")


class _Raises:
    def __reduce__(self) -> Any:
        return exec, ("raise OSError('no file\\n  of that name')",)


def test_what_a_value_raises_when_it_is_read_is_one_line(directory: RunDirectory) -> None:
    pulls = Pulls(parse("thing"), 1, directory)
    _pulled(pulls, [{"thing": _Raises()}], directory)
    _, (why,) = _finish(pulls)
    assert "cannot be read in the notebook (OSError: no file of that name); it was saved" in why


def test_what_cannot_be_saved_either(tmp_path: Path) -> None:
    pulls = Pulls(parse("a"), 1, RunDirectory(tmp_path / "gone"))
    pulls.take(Results(rank=0, names=("a",)), Segment.of([memoryview(b"garbage")]).fd)
    found, (why,) = _finish(pulls)
    assert found == {}
    assert "it could not be saved either" in why


def test_a_failed_run_brings_back_all_or_nothing(directory: RunDirectory) -> None:
    """What is missing is no second error."""
    pulls = Pulls(parse("a,b"), 1, directory)
    _pulled(pulls, [{"a": 1}], directory)
    assert pulls.finish(succeeded=False) == (None, None)
    _pulled(pulls, [{"a": 1, "b": 2}], directory)
    assert pulls.finish(succeeded=False) == ({"a": 1, "b": 2}, None)


def test_the_option_is_named_as_it_was_written(directory: RunDirectory) -> None:
    pulls = Pulls(parse("a"), 1, directory)
    _, missing = pulls.finish(succeeded=True, option="--pull")
    assert str(missing) == "--pull: `a` of rank 0 did not arrive"
