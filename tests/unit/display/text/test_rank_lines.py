"""The bars of tqdm and rich, as a rank writes them and its kernel reads them: rows and lines."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tqdm.std import tqdm

from ddp_magic.display.text.rank_lines import RankLines
from ddp_magic.wire.marks import MarkSplitter, Writer
from ddp_magic.worker.console.streams import Writes

MARKER = "\x1b]ddp_magic;0;"
_COLORED = "\x1b[1;31mred\x1b[0m \x1b[38;5;9mtoo\x1b[m"


class _Stream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` of a rank, as far as its writes go."""

    def __init__(self, fd: int, writes: Writes, written: list[bytes]) -> None:
        self._fd, self._writes, self._written = fd, writes, written

    def write(self, text: str) -> int:
        if text:
            self._written.append(self._writes.marked(self._fd, text.encode()))
        return len(text)


def _written(cell: Callable[[], None]) -> bytes:
    """Return what a rank that runs this writes into its pipe."""
    writes, written = Writes(MARKER), []
    out, err = (_Stream(fd, writes, written) for fd in (1, 2))
    with redirect_stdout(out), redirect_stderr(err):  # type: ignore[type-var]
        cell()
    return b"".join(written)


class _Reader:
    """The kernel's side."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.rank = RankLines()
        self._splitter = MarkSplitter(MARKER.encode())
        self._writer, self._begins = Writer.ANYBODY, False

    def read(self, data: bytes) -> None:
        for item in self._splitter.feed(data):
            if isinstance(item, Writer):
                self._writer, self._begins = item, True
            elif isinstance(item, bytes):
                text, writer = item.decode("latin1"), self._writer.value
                self.lines += self.rank.feed(text, writer, begins=self._begins)
                self._begins = False

    def end(self) -> list[str]:
        self.lines += self.rank.end()
        return [line.rstrip() for line in self.lines]


def _bar(*args: Any, **more: Any) -> tqdm[Any]:
    form = "{desc} {n}/{total}{postfix}"
    return tqdm(*args, bar_format=form, mininterval=0, ascii=True, **more)


def _nested() -> None:
    for epoch in _bar(range(2), desc="outer"):
        for _ in _bar(range(3), desc="inner", leave=False):
            pass
        print("epoch", epoch)


def _three_levels() -> None:
    for _ in _bar(range(2), desc="a"):
        for _ in _bar(range(2), desc="b", leave=True):
            for _ in _bar(range(2), desc="c", leave=False):
                pass
        tqdm.write("said")


def _all_stay() -> None:
    for _ in _bar(range(2), desc="a"):
        for _ in _bar(range(2), desc="b"):
            for _ in _bar(range(2), desc="c"):
                pass


def _one_after_the_other() -> None:
    for epoch in range(3):
        for _ in _bar(range(3), desc=f"epoch {epoch}"):
            pass
        print("loss", epoch)


def _positions() -> None:
    bars = [_bar(total=2, desc=f"bar {i}", position=i) for i in range(3)]
    for _ in range(2):
        for bar in bars:
            bar.update()
    print("between")
    for bar in bars:
        bar.close()


def _lowest_first() -> None:
    bars = [_bar(total=1, desc=f"bar {i}", position=i) for i in (2, 0)]
    for bar in bars:
        bar.update()
        bar.close()


def _on_stdout() -> None:
    for i in _bar(range(3), desc="bar", file=sys.stdout):
        print("step", i)
        print("half", end="")
        print(" and half")


def _postfix_and_log() -> None:
    import sys

    with _bar(total=2, desc="bar") as bar:
        for i in range(2):
            bar.set_postfix(loss=i)
            bar.update()
            sys.stderr.write(f"WARNING:root:{i}\n")


def _written_beside_it() -> None:
    for i in _bar(range(3), desc="a long description"):
        tqdm.write(f"said {i}", file=sys.stderr)


def _return_at_the_end() -> None:
    for i in range(3):
        print(f"{i} of 3", end="\r")
    print()
    print("done")


def _in_pieces() -> None:
    """As alive-progress does in a notebook, and Keras."""
    for i in range(3):
        for piece in ("\r", "bar", " ", f"{i}/2", " ", " - loss 3" if i == 2 else ""):
            sys.stdout.write(piece)
        print(f"step {i}", file=sys.stderr)
    print()
    print("done")
    sys.stdout.write("\r")
    for piece in ("epoch ", "1", " ends\n"):
        sys.stdout.write(piece)


CASES: list[tuple[Callable[[], None], list[str]]] = [
    (_nested, ["epoch 0", "epoch 1", "outer 2/2"]),
    (_all_stay, ["c 2/2", "c 2/2", "b 2/2", "c 2/2", "c 2/2", "b 2/2", "a 2/2"]),
    (_three_levels, ["b 2/2", "said", "b 2/2", "said", "a 2/2"]),
    (
        _one_after_the_other,
        ["epoch 0 3/3", "loss 0", "epoch 1 3/3", "loss 1", "epoch 2 3/3", "loss 2"],
    ),
    (_positions, ["between", "bar 0 2/2", "bar 1 2/2", "bar 2 2/2"]),
    (_lowest_first, ["bar 2 1/1", "bar 0 1/1"]),
    (
        _on_stdout,
        [
            "step 0",
            "half and half",
            "step 1",
            "half and half",
            "step 2",
            "half and half",
            "bar 3/3",
        ],
    ),
    (_postfix_and_log, ["WARNING:root:0", "WARNING:root:1", "bar 2/2, loss=1"]),
    (_written_beside_it, ["said 0", "said 1", "said 2", "a long description 3/3"]),
    (_return_at_the_end, ["2 of 3", "done"]),
    (
        _in_pieces,
        ["step 0", "step 1", "step 2", "bar 2/2  - loss 3", "done", "epoch 1 ends"],
    ),
]


@pytest.mark.parametrize(("cell", "wanted"), CASES)
def test_bars_leave_their_last_states(cell: Callable[[], None], wanted: list[str]) -> None:
    """Once, and what is printed meanwhile is a line, in order, wherever the reads cut."""
    data = _written(cell)
    chance = random.Random(0)
    for _ in range(50):
        cuts = sorted(chance.sample(range(len(data)), min(len(data), chance.randint(0, 40))))
        reader = _Reader()
        for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True):
            reader.read(data[a:b])
        assert reader.end() == wanted


def test_nested_bars_are_rows() -> None:
    """Outer bars first; what stands in them is their last state."""
    kept: list[tqdm[Any]] = []

    def cell() -> None:
        outer = _bar(total=2, desc="outer")
        inner = [_bar(total=3, desc=name) for name in ("inner", "innermost")]
        outer.update()
        inner[1].update(2)
        kept.extend([outer, *inner])

    reader = _Reader()
    reader.read(_written(cell))
    lines = reader.rank
    assert lines.bars == ("outer 1/2", "inner 0/3", "innermost 2/3")
    assert lines.age() == lines.age() == []
    assert lines.end() == ["outer 1/2", "inner 0/3", "innermost 2/3"]
    for bar in kept:
        bar.disable = True


def _rich(progress_lines: Callable[[Progress, Console], None]) -> Callable[[], None]:
    def cell() -> None:
        console = Console(force_terminal=True, width=60, color_system="standard")
        columns = (TextColumn("{task.description} {task.completed:.0f}"), BarColumn(5))
        with Progress(*columns, console=console, auto_refresh=False) as progress:
            progress_lines(progress, console)
        print("after")

    return cell


def test_the_bars_of_rich() -> None:
    """Rows while they go on, with the lines that are printed above them as lines."""
    rows = []

    def work(progress: Progress, _console: Console) -> None:
        tasks = [progress.add_task(name, total=4) for name in ("a", "b")]
        for i in range(4):
            for task in tasks:
                progress.advance(task)
            progress.refresh()
            print("line", i)

    data = _written(_rich(work))
    for size in (1, 7, 100, len(data)):
        reader = _Reader()
        for start in range(0, len(data), size):
            reader.read(data[start : start + size])
            rows.append(reader.rank.bars)
            reader.lines += reader.rank.age()
        lines = [line.encode().decode("ascii", "ignore") for line in reader.end()]
        words = [line.split("\x1b")[0].strip() for line in lines]
        assert words == ["line 0", "line 1", "line 2", "line 3", "a 4", "b 4", "after"]
    assert any(len(bars) == 2 and bars[0].startswith("a 2") for bars in rows)


def test_a_transient_bar_leaves_nothing() -> None:
    def cell() -> None:
        console = Console(force_terminal=True, width=60, color_system=None)
        with Progress(console=console, auto_refresh=False, transient=True) as progress:
            progress.add_task("gone", total=2)
            progress.refresh()
        print("after")

    reader = _Reader()
    reader.read(_written(cell))
    assert reader.end() == ["after"]


def test_text_of_children_beside_a_bar() -> None:
    """It is nobody's write, and still no part of the bar on stderr."""
    lines = RankLines()
    assert lines.feed("\r 50%", 2, begins=True) == []
    assert lines.feed("child\n") == ["child"]
    assert lines.feed("\r100%", 2, begins=True) == []
    assert lines.feed("\n", 2, begins=True) == []
    assert lines.feed("next\n") == ["100%", "next"]


def test_blank_lines_stay_blank_lines() -> None:
    """Also on stderr, where they may be the beginning of a bar."""
    lines = RankLines()
    assert lines.feed("\n", 2, begins=True) == []
    assert lines.feed("text\n") == ["", "text"]
    lines.feed("\n", 2, begins=True)
    assert lines.age() + lines.age() == [""]


def test_bars_without_colors() -> None:
    """The table has none."""
    lines = RankLines()
    lines.feed("\r\x1b[32m50%\x1b[0m\x1b[1;36m|\x1b[0m", 2, begins=True)
    assert lines.bars == ("50%|",)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b]8;id=1;https://x.org\x1b\\click\x1b]8;;\x1b\\ here", "click here"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1bPq#0\x1b\\text\x1b_command\x1b\\", "text"),
        ("a\x1b[10;5Hb\x1b[3Cc\x1b(B\x1b7\x1b8", "abc"),
        (_COLORED, _COLORED),
        ("an \x1b alone, \x1b]8;; unfinished", "an \x1b alone, \x1b]8;; unfinished"),
    ],
)
def test_of_escape_sequences_only_colors_stay(text: str, seen: str) -> None:
    """A notebook shows the others as they are: rich writes links with random numbers."""
    lines = RankLines()
    assert lines.feed(text) == []
    assert lines.partial == seen
    assert lines.feed("\n") == [seen]
    assert lines.feed(f"\r{text}") == []
    assert lines.feed("\n") + lines.settle() == [seen]
