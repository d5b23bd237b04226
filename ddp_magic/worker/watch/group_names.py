"""The names of process groups, of which torch's record has only numbers and operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ddp_magic.worker.watch.pending import GroupKey
from ddp_magic.worker.watch.torch_records import names_by_number


class GroupNames:
    """Name and title of each group, by `GroupKey`: learned from the records that are read."""

    def __init__(self) -> None:
        self._names: dict[GroupKey, tuple[str, str]] = {}

    def __getitem__(self, key: GroupKey) -> tuple[str, str]:
        return self._names[key]

    def __contains__(self, key: GroupKey) -> bool:
        return key in self._names

    def has(self, keys: Iterable[GroupKey]) -> bool:
        """Return whether the names of all of them are known."""
        return all(key in self._names for key in keys)

    def title(self, backend: str, name: str) -> str:
        """Return what a person calls a group; empty if it is not known."""
        titles = [t for (b, _), (n, t) in self._names.items() if (b, n) == (backend, name)]
        return (titles or [""])[-1]

    def newest(self, keys: Iterable[GroupKey]) -> list[GroupKey]:
        """Return those whose name is known; of several of one name the last one."""
        newest = {
            (key[0], self._names[key][0]): key
            for key in sorted(keys, key=lambda key: int(key[1]))
            if key in self._names
        }
        return list(newest.values())

    def learn(self, backend: str, record: Mapping[str, Any]) -> None:
        """Learn from a record: an operation has the name of its group."""
        for entry in record.get("entries", []):
            key = (backend, str(entry["pg_id"]))
            if key not in self._names:
                name, title = map(str, entry["process_group"])
                self._names[key] = name, title
        if not self.has((backend, group) for group in record.get("pg_status", {})):
            self._infer(backend, record["pg_status"])

    def _infer(self, backend: str, groups: Iterable[str]) -> None:
        """Name the groups of which there is no operation in the record any more."""
        names = names_by_number(backend)
        known = {group: names_ for (of, group), names_ in self._names.items() if of == backend}
        if known and all(names.get(group) == names_ for group, names_ in known.items()):
            self._names |= {
                (backend, group): names[group]
                for group in groups
                if group not in known and group in names
            }
