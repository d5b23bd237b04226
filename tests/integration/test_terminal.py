"""IPython in a terminal: plain text, figures as files, and a status line that is rewritten."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.integration.kernel import plain
from tests.limits import LONG_S

SESSION = (
    "%load_ext ddp_magic\n"
    "%ddp_status\n"
    "get_ipython().run_cell_magic('ddp', '-n 2', '''import time\n"
    "print('hello', rank)\n"
    "if rank == 1:\n"
    "    plt.plot([1]); plt.show()\n"
    "    display({'text/html': '<b>x</b>', 'text/plain': 'bold'}, raw=True)\n"
    "for _ in tqdm(range(20), desc='work'): time.sleep(0.05)\n"
    "''')\n"
    "print(get_ipython().run_line_magic('ddp_status', ''))\n"
)


BODY = "import time\nprint('sleeps')\ntime.sleep(1000)"
WAIT = f"get_ipython().run_cell_magic('ddp', '-n 2', {BODY!r})\n"


def _ipython(folder: Path, session: str = SESSION) -> list[str]:
    script = folder / "session.ipy"
    script.write_text(session)
    return [sys.executable, "-m", "IPython", "--no-banner", "--simple-prompt", str(script)]


def test_text_that_goes_to_a_file(tmp_path: Path) -> None:
    """The first line, the ranks' lines, figures as files, one line at the end; status as text."""
    done = subprocess.run(
        _ipython(tmp_path),
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "TERM": "xterm-256color"},
    )
    lines = done.stdout.splitlines()
    assert "2 ranks on the CPU" in lines, done
    assert "[rank 0] hello 0" in lines
    assert "[rank 1] <Figure size 640x480 with 1 Axes>" in lines
    assert "[rank 1] bold" in lines
    assert any(line.startswith("2 ranks · ") and line.endswith(" · ok") for line in lines)
    assert not any("<div" in line or "<table" in line for line in lines)
    assert any("SUCCEEDED" in line for line in lines)
    (figure,) = re.findall(r"^figure: (.*)$", done.stdout, re.MULTILINE)
    assert Path(figure).read_bytes().startswith(b"\x89PNG")
    assert "\x1b[K" not in done.stdout  # no status line


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a terminal of 60 columns shows; Ctrl-C is pressed in the second run."""
    folder = tmp_path_factory.mktemp("terminal")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    env = {**os.environ, "IPYTHONDIR": str(folder / "ipython"), "TERM": "xterm-256color"}
    env["COLUMNS"] = "80"  # from a shell that was wider
    command = _ipython(folder, SESSION + WAIT)
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=env
    )
    os.close(theirs)
    shown, is_stopped = b"", False
    with contextlib.suppress(OSError):  # so does Linux tell the end
        while piece := os.read(ours, 65536):
            shown += piece
            if b"sleeps\r\n" in shown and not is_stopped:
                is_stopped = True
                process.send_signal(signal.SIGINT)
    os.close(ours)
    process.wait(timeout=LONG_S)
    return shown.decode()


def test_ctrl_c_stops_a_run_in_a_terminal(written: str) -> None:
    """With one line that says where the ranks were."""
    stopped = plain(written).partition("sleeps")[2]
    assert re.search(r"2 ranks · [\d.]+ s · stopped", stopped)
    line = "KeyboardInterrupt: ranks 0-1 stopped at line 4"
    assert line in stopped
    assert "Traceback" not in stopped


def test_a_terminal_has_a_status_line(written: str) -> None:
    """Rewritten in place, never wider than the terminal, and gone at the end."""
    states = re.findall(r"\r\x1b\[K([^\r\n\x1b]*)", written)
    assert any(re.search(r"running · \d+ s · rank \d: work: +\d+%", state) for state in states)
    # A line that stays, such as a figure's file, may follow one that was hidden.
    hidden = re.findall(r"\r\x1b\[K([^\r\n\x1b]*)(?=\r\x1b\[K)", written)
    assert max(map(len, hidden)) < 60
    kept = re.sub(r"\r\x1b\[K[^\r\n\x1b]*(?=\r\x1b\[K)|\r\x1b\[K", "", written)
    assert "\x1b[36m[rank 0]\x1b[0m hello 0\r\n" in kept
    assert "running · " not in kept.partition("· SUCCEEDED")[0]
