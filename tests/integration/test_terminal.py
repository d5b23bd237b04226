"""IPython in a terminal: plain text, no updates in place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_text_in_a_terminal(tmp_path: Path) -> None:
    """The first line, the ranks' lines, figures by name, one line at the end; status as text."""
    script = tmp_path / "session.ipy"
    script.write_text(
        "%load_ext ddp_magic\n"
        "%ddp_status\n"
        "get_ipython().run_cell_magic('ddp', '-n 2', '''print('hello', rank)\n"
        "if rank == 1:\n"
        "    plt.plot([1]); plt.show()\n"
        "    display({'text/html': '<b>x</b>', 'text/plain': 'bold'}, raw=True)\n"
        "''')\n"
        "print(get_ipython().run_line_magic('ddp_status', ''))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "TERM": "dumb"},
    )
    lines = done.stdout.splitlines()
    assert "2 ranks on the CPU" in lines, done
    assert "[rank 0] hello 0" in lines
    assert "[rank 1] <Figure size 640x480 with 1 Axes>" in lines
    assert "[rank 1] bold" in lines
    assert any(line.startswith("2 ranks · ") and line.endswith(" · ok") for line in lines)
    assert not any("<div" in line or "<table" in line for line in lines)
    assert any("SUCCEEDED" in line for line in lines)
