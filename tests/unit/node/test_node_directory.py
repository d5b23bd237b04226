"""The far relay's own directory."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from ddp_magic.node.node_directory import NEW_S, NodeDirectory, remove_old


def _directory(parent: Path, name: str, age_s: float) -> Path:
    path = parent / name
    path.mkdir(mode=0o700)
    (path / "lock").touch()
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def test_only_what_nobody_uses_is_removed(tmp_path: Path) -> None:
    """Not the directory of a relay that runs, or of one that starts and has no lock yet."""
    old = _directory(tmp_path, "ddp_magic_node-old", 2 * NEW_S)
    new = _directory(tmp_path, "ddp_magic_node-new", 0.0)
    other = _directory(tmp_path, "somebody-else", 2 * NEW_S)
    used = _directory(tmp_path, "ddp_magic_node-used", 2 * NEW_S)
    with (used / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_old(tmp_path)
    assert not old.exists()
    assert all(path.exists() for path in (new, other, used))


def test_what_a_rank_has_called_is_sent_as_it_grows() -> None:
    """Each byte once, until another attempt begins; that the file is gone is sent too."""
    directory = NodeDirectory()
    cell = directory.place_of(Path("/run/cell1/cell.py"))
    cell.parent.mkdir()
    calls = cell.parent / "rank3.calls"

    def sent() -> list[tuple[int, bytes]]:
        parts = [payload.partition(b"\0") for payload in directory.new_files()]
        heads = [json.loads(head) for head, _, _ in parts]
        assert all((h["folder"], h["name"]) == ("cell1", "rank3.calls") for h in heads)
        return [(h["at"], part[2]) for h, part in zip(heads, parts, strict=True)]

    assert sent() == []
    calls.write_bytes(b"one\n")
    assert sent() == [(0, b"one\n")]
    with calls.open("ab") as file:
        file.write(b"two\n")
    assert sent() == [(4, b"two\n")]
    assert sent() == []
    directory.begin_calls(cell, 3)
    assert sent() == []
    calls.write_bytes(b"again\n")
    assert sent() == [(0, b"again\n")]
    calls.unlink()
    assert sent() == [(-1, b"")]
    assert sent() == []
    directory.remove()
