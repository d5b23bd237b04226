"""What a person sees of `%%ddp` in JupyterLab."""

from __future__ import annotations

import re
import time
from pathlib import Path

import lab as harness
import nbformat
from conftest import OpenCells, Shoot
from lab import (
    IDLE_S,
    interrupt,
    open_notebook,
    outputs,
    restart_kernel,
    run_cell,
    save,
    seen,
    text,
    wait_idle,
    wait_seen,
    wait_until,
)

from tests.limits import within


def exists(pid: int) -> bool:
    """Return whether a process lives; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_text_is_seen_before_the_cell_ends(
    open_cells: OpenCells, shoot: Shoot, lab: harness.Lab
) -> None:
    """A line that a rank prints is in the page while the cell still runs."""
    page = open_cells(
        "%%ddp -n 2\nimport pathlib, time\nprint('early', rank)\n"
        "while not pathlib.Path('seen').exists(): time.sleep(0.05)\nprint('late', rank)"
    )
    run_cell(page, 1)
    wait_seen(page, 1, "[rank 1] early 1")
    during = seen(page, 1)
    shoot(page, 1, "during")
    assert "late" not in during
    (lab.directory / "seen").touch()
    wait_idle(page)
    shoot(page, 1, "after")
    assert text(page, 1).count("late") == 2


def test_a_figure_stands_between_its_neighbors(open_cells: OpenCells, shoot: Shoot) -> None:
    """A figure of a rank is an image, after the text before it and before the text after it."""
    page = open_cells(
        "%%ddp -n 2\n"
        "import matplotlib.pyplot as plt\n"
        "if rank == 1:\n"
        "    print('before')\n"
        "    plt.figure(figsize=(3, 2))\n"
        "    plt.plot([1, 2])\n"
        "    plt.show()\n"
        "    print('after')\n"
    )
    run_cell(page, 1)
    wait_idle(page)
    shoot(page, 1, "after")
    kinds = []
    for output in outputs(page, 1):
        if "image/png" in output.get("data", {}):
            kinds.append("image")
        elif output["output_type"] == "stream":
            kinds += re.findall("before|after", "".join(output["text"]))
    assert kinds == ["before", "image", "after"]
    assert page.locator(".jp-OutputArea img").count() == 1


def test_stop_ends_the_run_and_not_the_kernel(open_cells: OpenCells, shoot: Shoot) -> None:
    """Stop shows KeyboardInterrupt, and the next run works."""
    page = open_cells(
        "%%ddp -n 2\nimport time\nprint('asleep')\ntime.sleep(1000)",
        "%%ddp -n 2\nprint('again', rank)",
    )
    run_cell(page, 1)
    wait_seen(page, 1, "asleep")
    interrupt(page)
    wait_idle(page)
    shoot(page, 1, "stopped")
    error = outputs(page, 1)[-1]
    assert error["output_type"] == "error"
    assert "KeyboardInterrupt" in seen(page, 1)
    run_cell(page, 2)
    wait_idle(page)
    shoot(page, 2, "next")
    assert "[rank 1] again 1" in text(page, 2)


def test_a_restart_leaves_no_process(open_cells: OpenCells, lab: harness.Lab) -> None:
    """3 s after the kernel was restarted in the middle of a run, nothing of the run lives."""
    page = open_cells("%%ddp -n 2\nimport os, time\nprint('pid', os.getpid())\ntime.sleep(1000)")
    (kernel,) = lab.kernels()
    run_cell(page, 1)
    wait_until(lambda: text(page, 1).count("pid ") == 2, IDLE_S, "both pids")
    ranks = {int(pid) for pid in re.findall(r"pid (\d+)", text(page, 1))}
    everything = ranks | {process.pid for process in lab.processes()}
    assert len(ranks) == 2
    assert all(map(exists, ranks))
    restart_kernel(page)
    wait_until(lambda: not exists(kernel.pid), IDLE_S, "the old kernel's end")
    # Polled until the limit: the property is about what is there 3 s later, not about the way.
    began = time.monotonic()
    while any(map(exists, everything)) and within(time.monotonic() - began, 3):
        time.sleep(0.1)
    assert not [pid for pid in everything if exists(pid)]
    wait_idle(page)


def test_progress_bars_do_not_flood(open_cells: OpenCells, shoot: Shoot, lab: harness.Lab) -> None:
    """Bars of two ranks move in the table; of each, only the last state is kept."""
    page = open_cells(
        "%%ddp -n 2\n"
        "import pathlib, time\n"
        "from tqdm import tqdm\n"
        "for step in tqdm(range(30), desc=f'bar{rank}'):\n"
        "    time.sleep(0.15)\n"
        "    while step in (9, 19) and not pathlib.Path(f'saw{step}').exists(): time.sleep(0.05)\n"
    )
    run_cell(page, 1)
    wait_seen(page, 1, "bar0:  30%")
    shoot(page, 1, "during")
    assert text(page, 1) == ""  # it is in the table, and only there
    (lab.directory / "saw9").touch()
    wait_seen(page, 1, "bar0:  63%")
    (lab.directory / "saw19").touch()
    wait_idle(page)
    shoot(page, 1, "after")
    save(page)
    bars = [line for line in text(page, 1).splitlines() if "bar" in line]
    assert len(bars) == 2
    assert all("100%" in bar and "30/30" in bar for bar in bars)
    assert len(outputs(page, 1)) <= 3


def test_an_error_names_its_line(open_cells: OpenCells, shoot: Shoot) -> None:
    """An exception on rank 1 is red, and names the cell and the line as the notebook counts."""
    page = open_cells(
        "%%ddp -n 2\n"
        "def divide(a, b):\n"
        "    return a / b\n"
        "\n"
        "if rank == 1:\n"
        "    divide(1, 0)\n"
        "dist.barrier()\n"
    )
    run_cell(page, 1)
    wait_idle(page)
    shoot(page, 1, "after")
    error = outputs(page, 1)[-1]
    assert error["output_type"] == "error"
    assert re.findall(r"Cell In\[2\], line (\d+)", text(page, 1)) == ["6", "3"]
    shown = seen(page, 1)
    assert "ZeroDivisionError: division by zero" in shown
    assert "rank 1" in shown
    red = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
    if red.count() == 0:  # older JupyterLabs name it so
        red = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']")
    assert "ZeroDivisionError" in red.first.inner_text()


def test_a_notebook_opened_again_is_the_same(
    open_cells: OpenCells, lab: harness.Lab, shoot: Shoot
) -> None:
    """What was shown is shown again from the saved file, without a kernel's help."""
    page = open_cells(
        "%%ddp -n 2\n"
        "import matplotlib.pyplot as plt\n"
        "import time\n"
        "print('text', rank)\n"
        "if rank == 0:\n"
        "    plt.figure(figsize=(3, 2))\n"
        "    plt.plot([1, 2])\n"
        "    plt.show()\n"
        "    display({'a': 1})\n"
        "time.sleep(1)\n",
        "%%ddp -n 2\nraise ValueError(rank)",
    )
    for cell in (1, 2):
        run_cell(page, cell)
        wait_idle(page)
    save(page)
    before = [(seen(page, cell), outputs(page, cell)) for cell in (1, 2)]
    shoot(page, 1, "before")
    path = next(lab.directory.glob("test_a_notebook_opened_again*.ipynb"))
    page.close()
    lab.end_kernels()

    again = page.context.new_page()
    open_notebook(again, lab, path, kernel=False)
    wait_seen(again, 2, "ValueError")
    shoot(again, 1, "again")
    shoot(again, 2, "again-error")
    after = [(seen(again, cell), outputs(again, cell)) for cell in (1, 2)]
    images = again.locator(".jp-OutputArea img").count()
    again.close()
    assert after == before
    assert images == 1
    nbformat.validate(nbformat.read(path, as_version=4))


def test_a_flood_does_not_hide_the_error(open_cells: OpenCells, shoot: Shoot) -> None:
    """After 1e5 lines from one rank the page answers, and the exception that ended it is seen."""
    page = open_cells(
        "%%ddp -n 2\n"
        "if rank == 0:\n"
        "    for i in range(100_000):\n"
        "        print('line', i, 'x' * 50)\n"
        "    raise ValueError('after the flood')\n",
        "print('alive')",
    )
    run_cell(page, 1)
    wait_idle(page)
    wait_seen(page, 1, "ValueError: after the flood")
    lines = text(page, 1).splitlines()
    shoot(page, 1, "after")
    assert len(lines) < 10_000
    assert any("line 0 " in line for line in lines)
    assert any("line 99999 " in line for line in lines)
    assert "all are in" in text(page, 1)
    assert "rate exceeded" not in text(page, 1)
    run_cell(page, 2)
    wait_seen(page, 2, "alive")
    shoot(page, 2, "next")
