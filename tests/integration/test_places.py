"""Where a run keeps its files: what is in the way there, full disks, cleaners of old files."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel

SUM = "t = torch.ones(1); dist.all_reduce(t); print('sum', t.item())"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="d-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def shared_cache() -> Iterator[Path]:
    """The module's kernel's cache directory, whose name leaves room for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="d-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def shared_kernel_env(shared_cache: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(shared_cache)}


@pytest.fixture
def runs(shared_cache: Path) -> Path:
    """Where the module's kernel keeps the files of runs, without those of earlier tests."""
    shutil.rmtree(shared_cache / "ddp_magic", ignore_errors=True)
    return shared_cache / "ddp_magic"


def test_something_in_the_place_of_the_logs(
    new_kernel: Callable[..., Kernel], short_path: Path
) -> None:
    """It is said in one line, once; the runs go on."""
    (short_path / "other").mkdir()
    (short_path / "ddp_magic").symlink_to(short_path / "other")
    kernel = new_kernel({"XDG_CACHE_HOME": str(short_path)})
    first = kernel.run(f"%%ddp -n 2\n{SUM}")
    assert first.status == "ok", first.traceback
    (line,) = [line for line in first.lines if not line.startswith("[rank")]
    assert f"{short_path}/ddp_magic: it is a symbolic link" in line
    second = kernel.run(f"%%ddp -n 2\n{SUM}")
    assert sorted(second.lines) == ["[rank 0] sum 2.0", "[rank 1] sum 2.0"], second
    assert list((short_path / "other").iterdir()) == []


@pytest.mark.slow
def test_a_preloaded_librarys_temporary_directory(new_kernel: Callable[..., Kernel]) -> None:
    """matplotlib makes one where it finds no cache; no rank removes it, or fails to."""
    kernel = new_kernel({"XDG_CACHE_HOME": "/dev/null", "XDG_CONFIG_HOME": "/dev/null"})
    cell = "%%ddp -n 2\nimport matplotlib, os\nprint(os.path.isdir(matplotlib.get_cachedir()))"
    for _ in range(2):  # the first one has it preloaded
        result = kernel.run(cell)
        assert "Exception ignored" not in result.text
    assert sorted(result.lines)[-2:] == ["[rank 0] True", "[rank 1] True"], result


def _small_disk(where: Path) -> tuple[str, ...]:
    """What is put before a kernel's command, so that it has a disk of 1 MB there."""
    mount = f'mount -t tmpfs -o size=1m,mode=755 tmpfs {where} && exec "$@"'
    return ("unshare", "-m", "sh", "-c", mount, "sh")


NEEDS_MOUNTS = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0,
    reason="needs a mount namespace",
)


@NEEDS_MOUNTS
@pytest.mark.parametrize("options", ["", pytest.param("--cold", marks=pytest.mark.slow), "-s lab"])
def test_a_disk_that_becomes_full(
    new_kernel: Callable[..., Kernel], short_path: Path, options: str
) -> None:
    """The log and the journal are lost, which is said; this cell and the next ones run on."""
    kernel = new_kernel({"XDG_CACHE_HOME": str(short_path)}, _small_disk(short_path))
    flood = kernel.run(
        f"%%ddp -n 2 {options}\nfor i in range(300):\n    print(str(i) * 4000)\n"
        f"    if i % 50 == 0:\n        dist.barrier()\n{SUM}"
    )
    assert flood.status == "ok", flood.traceback
    assert flood.text.count("sum 2.0") == 2
    said = [line for line in flood.lines if "No space left on device" in line]
    logs, *shown = said
    assert logs.startswith("the ranks' logs in "), said
    assert shown in ([], ["%ddp_show cannot show all of this again: No space left on device"])
    again = kernel.run(f"%%ddp {'-s lab' if options == '-s lab' else '-n 2'}\n{SUM}")
    assert again.status == "ok", again.traceback
    assert again.text.count("sum 2.0") == 2, again
    if options == "-s lab":
        failed = kernel.run("%%ddp -s lab\nif rank:\n    1 / 0\ndist.barrier()")
        assert "ZeroDivisionError" in failed.error["evalue"], failed
        renewed = kernel.run(f"%%ddp -s lab\n{SUM}")
        assert renewed.text.count("sum 2.0") == 2, renewed


@NEEDS_MOUNTS
def test_a_disk_that_is_full_from_the_start(
    new_kernel: Callable[..., Kernel], short_path: Path
) -> None:
    """The run's files go elsewhere, which one line says."""
    kernel = new_kernel({"XDG_CACHE_HOME": str(short_path)}, _small_disk(short_path))
    filled = kernel.run(
        f"try:\n    open('{short_path}/big', 'wb').write(bytes(2 * 2**20))\n"
        "except OSError as error:\n    print(error)"
    )
    assert "No space left" in filled.text
    result = kernel.run(f"%%ddp -n 2\n{SUM}")
    assert result.status == "ok", result.traceback
    said = [line for line in result.lines if "No space left on device" in line]
    assert len(said) == 1, result
    assert result.text.count("sum 2.0") == 2, result


def test_logs_that_cannot_be_written(kernel: Kernel, runs: Path) -> None:
    """As on a full disk, without one."""
    result = kernel.run(
        "%%ddp -n 2\nimport glob\n"
        f"(directory,) = glob.glob('{runs}/[0-9]*')\n"
        "os.symlink('/dev/full', f'{directory}/rank{rank}.log')\n"
        f"{SUM}"
    )
    assert result.status == "ok", result.traceback
    assert result.text.count("sum 2.0") == 2, result
    said = [line for line in result.lines if "No space left on device" in line]
    assert len(said) == 1, result


@pytest.mark.slow
def test_a_cleaner_between_cells(kernel: Kernel, runs: Path) -> None:
    """All directories are removed: the next cells work, a session's too, and are logged."""
    for options in ("-n 2", "-s lab -n 2"):
        assert kernel.run(f"%%ddp {options}\nx = 1\n{SUM}").status == "ok"
    shutil.rmtree(runs)
    result = kernel.run(f"%%ddp -s lab\nprint('x', x)\n{SUM}")
    assert result.status == "ok", result.traceback
    assert result.text.count("x 1") == 2, result
    logs = [path.read_text() for path in runs.glob("*/rank*.log")]
    assert logs == ["x 1\nsum 2.0\n"] * 2
    shutil.rmtree(runs)
    failed = kernel.run("%%ddp -s lab\nif rank:\n    1 / 0\ndist.barrier()")
    assert "ZeroDivisionError" in failed.error["evalue"], failed
    shutil.rmtree(runs)
    assert kernel.run(f"%%ddp -s lab\n{SUM}").text.count("sum 2.0") == 2
    shutil.rmtree(runs)
    assert "ended" in kernel.run("%ddp_stop lab").text
    for options in ("-n 2", "-n 2 --cold"):
        assert kernel.run(f"%%ddp {options}\n{SUM}").status == "ok"
    kernel.run("%ddp_status")


def test_a_cleaner_during_a_cell(kernel: Kernel, runs: Path) -> None:
    """What is written afterwards is kept, and the run ends well."""
    result = kernel.run(
        "%%ddp -n 2 --pull y\nimport shutil, time\nprint('before')\ntime.sleep(1)\n"
        f"dist.barrier()\nif rank == 0:\n    shutil.rmtree('{runs}')\n"
        "dist.barrier()\ny = 5\nprint('after')"
    )
    assert result.status == "ok", result.traceback
    assert result.text.count("after") == 2, result
    logs = [path.read_text() for path in runs.glob("*/rank*.log")]
    assert logs == ["after\n"] * 2
    assert kernel.value("y") == 5
