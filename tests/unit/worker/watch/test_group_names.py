"""The names of process groups, from records without torch."""

from __future__ import annotations

from typing import Any

from ddp_magic.worker.watch.group_names import GroupNames


def _entry(group: int, name: str, title: str) -> dict[str, Any]:
    return {"pg_id": group, "process_group": (name, title)}


def test_an_operation_has_the_name_of_its_group() -> None:
    names = GroupNames()
    names.learn("gloo", {"entries": [_entry(0, "0", "default_pg"), _entry(1, "3", "metrics")]})
    assert names["gloo", "1"] == ("3", "metrics")
    assert names.has([("gloo", "0"), ("gloo", "1")])
    assert not names.has([("gloo", "2")])
    assert names.title("gloo", "3") == "metrics"
    assert names.title("nccl", "3") == ""


def test_of_several_groups_of_one_name_the_last_one_counts() -> None:
    """A group that was destroyed stays in the record; numbers are compared as numbers."""
    names = GroupNames()
    names.learn("gloo", {"entries": [_entry(9, "0", "old"), _entry(10, "0", "new")]})
    names.learn("gloo", {"entries": [_entry(2, "1", "other")]})
    keys = [("gloo", "10"), ("gloo", "9"), ("gloo", "2"), ("gloo", "11")]
    assert sorted(names.newest(keys)) == [("gloo", "10"), ("gloo", "2")]


def test_a_group_without_operations_is_not_named_by_guess() -> None:
    """The names that torch knows now are used only if they agree with those in the record."""
    names = GroupNames()
    names.learn("gloo", {"entries": [_entry(0, "x", "y")], "pg_status": {"0": {}, "1": {}}})
    assert ("gloo", "1") not in names
