"""Text, figures and progress: complete, labelled, in order."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from tests.integration.kernel import Kernel, Result, plain

FIGURE = "[rank 0] <Figure size 100x100 with 1 Axes>"


def _tables(result: Result) -> list[str]:
    """Return the states of the status table."""
    displays = [c for kind, c in result.outputs if kind.endswith("display_data")]
    return [c["data"]["text/plain"] for c in displays if "ddp" not in c["metadata"]]


def _log(kernel: Kernel, rank: int) -> bytes:
    status = kernel.run("print(get_ipython().run_line_magic('ddp_status', ''))").text
    directory = status.partition("logs in ")[2].splitlines()[0]
    return (Path(directory) / f"rank{rank}.log").read_bytes()


def test_text_streams_while_the_cell_runs(kernel: Kernel, shared_kernel_directory: Path) -> None:
    """A line is there before the cell ends, a partial one too."""
    message = kernel.start(
        "%%ddp -n 1\nimport pathlib, time\nprint('first')\nprint('half', end='')\n"
        "while not pathlib.Path('seen').exists(): time.sleep(0.05)\nprint(' and half')"
    )
    seen = kernel.finish(message, until="half")
    assert "[rank 0] first\n[rank 0] half" in seen.text
    (shared_kernel_directory / "seen").touch()
    rest = kernel.finish(message)
    assert (seen.text + rest.text) == "[rank 0] first\n[rank 0] half and half\n"


def test_c_code_and_child_processes(kernel: Kernel) -> None:
    """What C code and children write to the descriptors is shown, in the order of writing."""
    result = kernel.run(
        "%%ddp -n 1\nimport ctypes, subprocess, sys\n"
        "print('python')\n"
        "libc = ctypes.CDLL(None); libc.puts(b'C'); libc.fflush(None)\n"
        "subprocess.run(['sh', '-c', 'echo child; echo child error >&2'])\n"
        "print('stderr', file=sys.stderr)\n"
        "import os; os.write(2, b'descriptor\\n')"
    )
    words = ["python", "C", "child", "child error", "stderr", "descriptor"]
    shown = [line for line in result.lines if line != "[rank 0] 11"]
    assert shown == [f"[rank 0] {word}" for word in words]


def test_much_to_stderr_at_once(kernel: Kernel) -> None:
    """200 KB to stderr in one write neither wedge the rank nor get lost."""
    result = kernel.run(
        "%%ddp -n 2\nimport os, sys\n"
        "text = ''.join(f'{i:>9}\\n' for i in range(20_000))\n"
        "sys.stderr.write(text)\nprint('done')",
    )
    assert result.status == "ok"
    wanted = "".join(f"{i:>9}\n" for i in range(20_000)) + "done\n"
    for rank in (0, 1):
        assert _log(kernel, rank).decode() == wanted
        assert f"[rank {rank}] done" in result.lines
        assert f"[rank {rank}] {900:>9}" in result.lines


def test_figures_are_in_order_with_the_text(kernel: Kernel) -> None:
    """Figures of every rank appear where they were drawn, and end up as images."""
    result = kernel.run(
        "%%ddp -n 2\nimport subprocess\n"
        "for i in range(3):\n"
        "    subprocess.run(['echo', f'before {i}'])\n"
        "    plt.figure(figsize=(1, 1)); plt.plot([1, 2]); plt.show()\n"
        "    print('after', i)\n"
    )
    assert result.status == "ok", result
    expected = [word for i in range(3) for word in (f"before {i}", "figure", f"after {i}")]
    assert _sequence(result, 0) == _sequence(result, 1) == expected


def _sequence(result: Result, rank: int) -> list[str]:
    """Return what one rank showed, in order, with the lines that all ranks printed."""
    seen: list[str] = []
    for kind, content in result.outputs:
        if kind == "stream":
            lines = re.findall(rf"\[(?:rank {rank}|ranks 0-1)\] (.*)", plain(content["text"]))
            seen += [line for line in lines if line]
        elif kind == "display_data" and content["metadata"].get("ddp") == {"rank": rank}:
            assert content["data"]["image/png"]
            assert f"[rank {rank}]" in content["data"]["text/html"]
            seen.append("figure")
    return seen


def test_lines_of_all_ranks_are_one(kernel: Kernel) -> None:
    """Those that are identical; each rank's own stay, in their order."""
    result = kernel.run(
        "%%ddp -n 3\nprint('begin')\nprint('rank', rank)\ndist.barrier()\nprint('end')\n"
        "if rank != 1: print('not all')"
    )
    lines = result.shown.splitlines()
    assert lines[0] == "[ranks 0-2] begin"
    assert sorted(lines[1:4]) == [f"[rank {rank}] rank {rank}" for rank in range(3)]
    assert lines[4] == "[ranks 0-2] end"
    assert sorted(lines[5:]) == ["[rank 0] not all", "[rank 2] not all"]


def test_a_label_has_a_color(kernel: Kernel) -> None:
    """Not where text is captured, and not with NO_COLOR."""
    cell = "%%ddp -n 2\nprint('mine', rank)"
    streams = [c["text"] for kind, c in kernel.run(cell).outputs if kind == "stream"]
    assert "\x1b[32m[rank 1]\x1b[0m mine 1\n" in "".join(streams)
    kernel.run("%%capture captured\n" + cell)
    assert "[rank 1] mine 1\n" in kernel.value("captured.stdout")
    kernel.run("import os; os.environ['NO_COLOR'] = '1'")
    streams = [c["text"] for kind, c in kernel.run(cell).outputs if kind == "stream"]
    # The libraries that read it are imported again, which the next run says.
    kernel.run("del os.environ['NO_COLOR']")
    kernel.run(cell)
    assert "[rank 1] mine 1\n" in "".join(streams)
    assert "\x1b" not in "".join(streams)


def test_a_line_is_shown_as_it_was_written(kernel: Kernel) -> None:
    """Blanks and colors stay; stderr is no error, which a notebook would show in red."""
    result = kernel.run(
        "%%ddp -n 1\nimport logging, sys\nprint('    indented  ')\nprint()\nprint('\\ta')\n"
        "print('\\x1b[31mred\\x1b[0m and not')\nprint('to stderr', file=sys.stderr)\n"
        "logging.warning('careful')"
    )
    texts = [content for kind, content in result.outputs if kind == "stream"]
    assert {content["name"] for content in texts} == {"stdout"}
    written = "".join(content["text"] for content in texts)
    lines = written.replace("\x1b[36m[rank 0]\x1b[0m", "[rank 0]").split("\n")
    assert lines == [
        "[rank 0]     indented  ",
        "[rank 0] ",
        "[rank 0] \ta",
        "[rank 0] \x1b[31mred\x1b[0m and not",
        "[rank 0] to stderr",
        "[rank 0] WARNING:root:careful",
        "",
    ]


def test_an_open_figure_is_shown_at_the_end(kernel: Kernel) -> None:
    """As in any cell with the inline backend, without plt.show()."""
    result = kernel.run("%%ddp -n 1\nplt.figure(figsize=(1, 1)); plt.plot([1, 2]);")
    assert len(result.displays) == 1, result


def test_clear_output_shows_the_last_state(kernel: Kernel) -> None:
    """Of text and figures, with and without `wait`, after a flood; other ranks are unharmed."""
    for wait in (True, False):
        result = kernel.run(
            "%%ddp -n 2\nfrom IPython.display import clear_output\nimport time\n"
            "for i in range(3000): print('flood', i)\n"
            "for i in range(3 if rank == 0 else 0):\n"
            f"    clear_output(wait={wait})\n"
            "    print('epoch', i)\n"
            "    plt.figure(figsize=(1, 1)); plt.plot([1, 2]); plt.show()\n"
            "    print('after', i); time.sleep(0.4)"
        )
        assert result.status == "ok", result.traceback
        head, *others, closing = result.visible
        page = ["[rank 0] epoch 2", FIGURE, "[rank 0] after 2"]
        assert [text for text in others if text and "rank 1" not in text] == page
        shown = "".join(text for text in others if text not in page)
        assert "[rank 0]" not in shown
        assert shown.startswith("[rank 1] flood 0\n")
        assert shown.endswith("[rank 1] flood 2999\n")
        assert "2 ranks" in head
        assert "ok" in closing


def test_displays_are_updated(kernel: Kernel) -> None:
    """No first value stays beside them, whatever other ranks have given the same id."""
    result = kernel.run(
        "%%ddp -n 2\nfrom IPython.display import ProgressBar, update_display\n"
        "handle = display('first', display_id=True)\nhandle.update('last')\n"
        "display(1, display_id='x'); display(2, display_id='x')\n"
        "update_display(rank, display_id='x')\nfor _ in ProgressBar(3): pass"
    )
    assert result.status == "ok", result.traceback
    assert result.text == ""
    for rank in (0, 1):
        own = [text for text in result.visible if text.startswith(f"[rank {rank}] ")]
        assert own[:2] == [f"[rank {rank}] 'last'", f"[rank {rank}] {rank}"]
        assert own[2].endswith(" 3/3")


def test_a_progress_bar_leaves_its_last_state(kernel: Kernel) -> None:
    """Carriage returns make one line of a bar, and the table shows it while it runs."""
    result = kernel.run(
        "%%ddp -n 2\nimport time\nfor _ in tqdm(range(40), desc='work'): time.sleep(0.05)"
    )
    bars = [line for line in result.lines if "work" in line]
    assert sorted(line[:9] for line in bars) == ["[rank 0] ", "[rank 1] "]
    assert all("40/40" in line for line in bars)
    tables = _tables(result)
    assert any("work" in table and "40/40" not in table for table in tables)


def test_nested_bars(kernel: Kernel) -> None:
    """A row each while they run; what is printed, or logged, between them is a line, in order."""
    result = kernel.run(
        "%%ddp -n 2\nimport sys, time\n"
        "for epoch in tqdm(range(3), desc='outer'):\n"
        "    for _ in tqdm(range(10), desc='inner', leave=False): time.sleep(0.05)\n"
        "    print('epoch', epoch)\n"
        "    print('warning', epoch, file=sys.stderr)"
    )
    for rank in (0, 1):
        own = [line for line in result.lines if line.startswith(f"[rank {rank}] ")]
        wanted = [f"[rank {rank}] {word} {i}" for i in range(3) for word in ("epoch", "warning")]
        assert own[:-1] == wanted
        assert own[-1].startswith(f"[rank {rank}] outer: 100%")
    tables = _tables(result)
    rows = [table.splitlines() for table in tables]
    assert any(
        "outer" in row and "inner" in below
        for lines in rows
        for row, below in itertools.pairwise(lines)
    ), tables


def test_the_bars_of_rich(kernel: Kernel) -> None:
    """A row each, and their last states once."""
    result = kernel.run(
        "%%ddp -n 1\nimport time\nfrom rich.progress import Progress\n"
        "with Progress() as progress:\n"
        "    tasks = [progress.add_task(name, total=20) for name in ('load', 'save')]\n"
        "    for i in range(20):\n"
        "        for task in tasks: progress.advance(task)\n"
        "        if i == 10: print('half')\n"
        "        time.sleep(0.1)"
    )
    words = [line.split()[2] for line in map(plain, result.lines)]
    assert words == ["half", "load", "save"], result.text
    tables = _tables(result)
    assert any("load" in table and "save" in table for table in tables)


def _saved(result: Result) -> list[str]:
    """Return the kinds of a cell's outputs as a notebook file has them: text is joined."""
    kinds: list[str] = []
    for kind, _ in result.outputs:
        if kind != "update_display_data" and not (kind == "stream" and kinds[-1:] == ["stream"]):
            kinds.append(kind)
    return kinds


def test_bars_and_figures_are_few_outputs(kernel: Kernel) -> None:
    """The first line, the bars' last states, three figures, the closing line."""
    result = kernel.run(
        "%%ddp -n 4\nimport time, matplotlib.pyplot\n"
        "for _ in tqdm(range(1000), desc=f'train {rank}'): time.sleep(0.001)\n"
        "dist.barrier()\n"
        "if rank == 0:\n"
        "    for _ in range(3): plt.figure(figsize=(1, 1)); plt.plot([1, 2]); plt.show()\n"
    )
    assert _saved(result) == ["display_data", "stream", *["display_data"] * 4]
    assert "ok" in result.summary


def test_many_figures_and_an_error_are_in_sight(kernel: Kernel) -> None:
    """JupyterLab draws 50 outputs; `%ddp_show` shows all figures."""
    result = kernel.run(
        "%%ddp -n 4\nfor i in range(10):\n    print(i, rank)\n"
        "    plt.figure(figsize=(1, 1)); plt.plot([1, 2]); plt.show()\n"
        "dist.barrier()\nif rank == 3: raise ValueError('late')\ndist.barrier()"
    )
    assert result.error["ename"] == "WorkerError"
    assert result.summary.endswith("· failed · rank 3 raised ValueError at line 6: late")
    assert len(_saved(result)) <= 45
    markup = "".join(d["data"]["text/html"] for d in kernel.run("%ddp_show").displays)
    assert markup.count("<img ") == 40


def test_last_words_before_sigkill(kernel: Kernel) -> None:
    """What a rank wrote just before it was killed is shown."""
    result = kernel.run(
        "%%ddp -n 2\nimport os, signal\nif rank == 1:\n    print('last words')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\nimport time; time.sleep(1000)"
    )
    assert "[rank 1] last words" in result.lines
    assert result.error["ename"] == "WorkerLostError"


def test_lines_of_10_mb(kernel: Kernel) -> None:
    """Cut on the screen, with a word where it is whole; with and without an end, and as a bar."""
    result = kernel.run(
        "%%ddp -n 1\nimport time\nprint('x' * 10_000_000)\n"
        "print('y' * 10_000_000, end='', flush=True)\ntime.sleep(1)\nprint()\n"
        "print('\\r' + 'z' * 10_000_000)\nprint('end')"
    )
    assert result.status == "ok", result.traceback
    assert result.text.count("10,000,000 characters; the whole line is in ") == 3, result.text[
        -200:
    ]
    assert len(result.text) < 1_000_000
    assert result.lines[-1] == "[rank 0] end"


def test_a_log_has_the_last_state_of_a_bar(kernel: Kernel) -> None:
    """Not each one: a bar of hours would fill the disk."""
    kernel.run(
        "%%ddp -n 1\nimport time\nprint('before')\n"
        "for _ in tqdm(range(40), desc='bar'): time.sleep(0.02)\nprint('after')"
    )
    before, bar, after = _log(kernel, 0).decode().splitlines()
    assert (before, after) == ("before", "after")
    assert bar.startswith("bar: 100%")
