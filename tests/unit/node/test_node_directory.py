"""The far relay's own directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ddp_magic.node.node_directory import NEW_S, remove_old


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
