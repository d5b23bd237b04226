"""Bounds of the tests: a hang breaks them, a slow machine does not."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.limits import HANG_S, slowness, within

TESTS = Path(__file__).parents[1]
CLOCKS = {"monotonic", "perf_counter", "time"}


def _too_tight(node: ast.AST) -> bool:
    """Return whether an expression bounds something by seconds that a slow machine may need."""
    match node:
        case ast.keyword(
            arg="timeout" | "timeout_s", value=ast.Constant(value=int() | float() as s)
        ):
            return s < 60
        case ast.Call(func=ast.Attribute(attr="timeout"), args=[ast.Constant(value=int() as s)]):
            return s < 600  # pytest.mark.timeout: of a whole test, whatever bounds it has inside
        case ast.Compare(left=left, ops=[ast.Lt() | ast.LtE()], comparators=[ast.Constant()]):
            return _reads_clock(left)
        case ast.BinOp(left=left, op=ast.Add(), right=ast.Constant(value=int() | float() as s)):
            return s < 60 and _reads_clock(left)
    return False


def _reads_clock(node: ast.expr) -> bool:
    attributes = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    return bool(attributes & (CLOCKS | {"elapsed_s"}))


def _found(source: str) -> Iterator[int]:
    return (node.lineno for node in ast.walk(ast.parse(source)) if _too_tight(node))


def test_bounds_are_for_hangs() -> None:
    """No wait under 60 s, and no asserted speed; promises in seconds go through `within`."""
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in _found(path.read_text())
    ]
    assert not found, "use HANG_S, or within() for a promise, of tests/limits.py"


@pytest.mark.parametrize(
    "line",
    [
        "assert result.elapsed_s < 15",
        "assert time.monotonic() - began < 5",
        "deadline = time.monotonic() + 3.0",
        "kernel.run(cell, timeout_s=10)",
        "queue.get(timeout=5)",
        "@pytest.mark.timeout(90)\ndef test_x(): ...",
    ],
)
def test_tight_bounds_are_found(line: str) -> None:
    assert list(_found(line))


@pytest.mark.parametrize(
    "line",
    [
        "assert within(result.elapsed_s, 2)",
        "assert rest.elapsed_s > 2",
        "kernel.run(cell, timeout_s=HANG_S)",
        "deadline = time.monotonic() + HANG_S",
        "assert len(lines) < 10",
    ],
)
def test_other_lines_are_not(line: str) -> None:
    assert not list(_found(line))


def test_a_promise_is_stretched_by_the_machines_slowness() -> None:
    """Kept in time it holds, and a hang breaks it on any machine."""
    assert within(2.9, 3)
    assert not within(1000 * HANG_S, 3)


def test_a_loaded_machine_is_a_slow_one() -> None:
    """Four busy processes a core are seen at once."""
    busy = [
        subprocess.Popen(
            [sys.executable, "-c", "print(1, flush=True)\nwhile True: pass"], stdout=-1
        )
        for _ in range(4 * (os.cpu_count() or 1))
    ]
    try:
        for process in busy:
            assert process.stdout is not None
            process.stdout.readline()
        assert slowness() > 1.5
    finally:
        for process in busy:
            process.kill()
            process.communicate()
