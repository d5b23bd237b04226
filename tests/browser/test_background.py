"""A run in the background, as JupyterLab shows it."""

from __future__ import annotations

import lab as harness
from conftest import OpenCells, Shoot
from lab import outputs, restart_kernel, run_cell, seen, text, wait_idle, wait_seen

WAITS = (
    "import pathlib, time\nprint('early', rank, flush=True)\n"
    "while not pathlib.Path('{file}').exists(): time.sleep(0.05)\n"
    "print('late', rank)\nplt.figure(figsize=(2, 1)); plt.plot([1, 2]); plt.show()\nx = rank + 40"
)


def test_its_output_appears_in_its_own_cell(
    open_cells: OpenCells, shoot: Shoot, lab: harness.Lab
) -> None:
    """While other cells run, and after them; the closing line stands last."""
    page = open_cells(
        "%%ddp -n 2 --bg --pull x@all\n" + WAITS.format(file="go"),
        "print('meanwhile')",
        "%ddp_wait\nprint(x)",
    )
    run_cell(page, 1)
    wait_idle(page)
    run_cell(page, 2)
    wait_seen(page, 2, "meanwhile")
    wait_seen(page, 1, "[rank 1] early 1")
    shoot(page, 1, "during")
    (lab.directory / "go").touch()
    wait_seen(page, 1, " · ok")
    shoot(page, 1, "after")
    assert text(page, 1).count("late") == 2
    assert page.locator(".jp-OutputArea img").count() == 2
    assert text(page, 2).strip() == "meanwhile"
    assert seen(page, 1).strip().splitlines()[-1].endswith(" · ok")
    run_cell(page, 3)
    wait_idle(page)
    shoot(page, 3, "waited")
    assert "[40, 41]" in text(page, 3)
    assert "late 1" in text(page, 3)
    assert len(outputs(page, 3)) < 10


def test_a_detached_run_is_attached_after_a_restart(
    open_cells: OpenCells, shoot: Shoot, lab: harness.Lab
) -> None:
    page = open_cells(
        "%%ddp -n 2 --detach --pull x@all\n" + WAITS.format(file="go2"), "%ddp_attach"
    )
    run_cell(page, 1)
    wait_seen(page, 1, "[rank 1] early 1")
    assert "end it: %ddp_stop" in seen(page, 1)
    restart_kernel(page)
    wait_idle(page)
    run_cell(page, 0)
    wait_idle(page)
    run_cell(page, 2)
    wait_seen(page, 2, "[rank 1] early 1")
    (lab.directory / "go2").touch()
    wait_idle(page)
    shoot(page, 2, "attached")
    assert " · ok" in seen(page, 2)
    assert text(page, 2).count("late") == 2
