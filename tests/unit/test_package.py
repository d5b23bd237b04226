"""The package's surface, and what importing it costs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import IPython
import pytest
from IPython.core.error import UsageError

import ddp_magic


def test_all_is_true() -> None:
    """Every name in __all__ is there, sorted, and nothing else is public."""
    assert sorted(ddp_magic.__all__) == ddp_magic.__all__
    for name in ddp_magic.__all__:
        assert getattr(ddp_magic, name) is not None


def test_tab_offers_every_public_name() -> None:
    """In a new interpreter: `launch` and `run` are imported on their first use."""
    code = "import ddp_magic; print(set(ddp_magic.__all__) - set(dir(ddp_magic)))"
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=300, capture_output=True, text=True
    )
    assert found.stdout == "set()\n"


def test_importing_is_light() -> None:
    """`import ddp_magic` loads neither torch nor IPython; the magics load no torch."""
    code = (
        "import sys, ddp_magic\n"
        "assert not {'torch', 'IPython', 'psutil'} & set(sys.modules)\n"
        "import ddp_magic.kernel.notebook.magics\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_an_old_ipython_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything that it lacks is imported; the version is that of pyproject.toml."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    oldest = re.search(r'"ipython>=([\d.]+)"', text)
    assert oldest is not None
    monkeypatch.setattr(IPython, "version_info", (7, 34, 0, ""))
    monkeypatch.setattr(IPython, "__version__", "7.34.0")
    with pytest.raises(UsageError, match=rf"needs IPython {oldest[1]} or later.*7\.34\.0: restart"):
        ddp_magic.load_ipython_extension(None)  # type: ignore[arg-type]  # it is not reached


def test_errors_show_their_own_lines() -> None:
    """IPython asks `_render_traceback_`: details first, one line last."""
    error = ddp_magic.WorkerError(
        "rank 1 raised E", rank=1, ename="E", evalue="", traceback=["t"], details=["head", "t"]
    )
    assert error._render_traceback_() == ["head", "t", "WorkerError: rank 1 raised E"]
    stopped = ddp_magic.RunInterrupted("rank 0 stopped")
    assert isinstance(stopped, KeyboardInterrupt)
    assert stopped._render_traceback_() == ["KeyboardInterrupt: rank 0 stopped"]
