"""What docstrings name in backticks is there: a reader follows `node.far_relay` to a file."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "ddp_magic"
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {path.stem for path in TREES} | {
    path.name for path in PACKAGE.rglob("*") if path.is_dir()
}
# Of other packages, in modules that are called as some of ours.
OTHERS = {"api._get_fq_hostname", "tqdm.notebook.tqdm"}


def _names_in(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name):
                found.add(name)
            case ast.Attribute(attr=name):
                found.add(name)
    return found


def _documented() -> Iterator[tuple[Path, str]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                for name in re.findall(r"`([\w./]+)`", ast.get_docstring(node) or ""):
                    yield path, name


def test_what_docstrings_refer_to_is_there() -> None:
    """Files by their path, modules and what is in them, methods and attributes of classes."""
    within: dict[str, set[str]] = defaultdict(set)
    for path, tree in TREES.items():
        within[path.stem] |= _names_in(tree) | MODULES
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                within[node.name] |= _names_in(node)
    missing = set()
    for path, name in _documented():
        *_, owner, last = ["", *name.split(".")]
        if last == "py":
            found = "/" not in name or (PACKAGE / name).exists() or (PACKAGE.parent / name).exists()
        elif owner in MODULES and owner not in within:  # a folder
            found = last in MODULES
        else:
            found = owner not in within or last in within[owner]
        if not found and name not in OTHERS:
            missing.add(f"{path.relative_to(PACKAGE)}: {name}")
    assert missing == set()
    assert sum(1 for _ in _documented()) > 500
