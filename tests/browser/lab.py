"""A real JupyterLab in a headless Chromium, driven as a person drives it.

    lab = start_lab(directory)
    with browser() as page:
        open_notebook(page, lab, make_notebook(directory / "a.ipynb", ["print(1)"]))
        run_all(page)
        wait_idle(page)
        assert text(page, 0) == "1\\n"
    lab.stop()

The server has a home, a configuration and a temporary directory of its own, so that nothing of the
machine's user is read or written. Clicks go to the real buttons; what the page holds is read from
JupyterLab's own notebook model (`--expose-app-in-browser`) or, where it matters that a person sees
it, from the page. Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import psutil
from playwright.sync_api import Page, sync_playwright

START_S = 120.0
STOP_S = 60.0
STEP_S = 60.0  # of one click, one command, one page
IDLE_S = 120.0
POLL_S = 0.05

_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    # Every cell is in the page, also those that are scrolled out of sight.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


# --- the server -----------------------------------------------------------------------------------


class Lab:
    """A running JupyterLab server.

    Attributes:
        directory: Where its notebooks are.
        application: "jupyterlab", or "notebook" for Notebook 7.
        url: Where it answers, without the token.
        log: What it has written.
    """

    def __init__(
        self, directory: Path, home: Path, process: subprocess.Popen[bytes], application: str
    ) -> None:
        """Take up a server that has been started; `start_lab` does."""
        self.directory = directory
        self.home = home
        self.application = application
        self.log = home / "lab.log"
        self.url = ""
        self.token = ""
        self._process = process
        self._seen: set[psutil.Process] = set()

    def wait_until_ready(self) -> None:
        """Read the port it chose, and wait until it answers there."""
        record = self.home / "runtime" / f"jpserver-{self._process.pid}.json"

        def ready() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{self.log.read_text(errors='replace')}")
            with contextlib.suppress(OSError, ValueError):
                server = json.loads(record.read_text())
                self.url, self.token = server["url"], server["token"]
                return bool(self.get("api/status"))
            return False

        wait_until(ready, START_S, "the server's first answer")

    def get(self, path: str, method: str = "GET") -> Any:
        """Ask the server's own interface."""
        request = urllib.request.Request(
            self.url + path, method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=STEP_S) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def processes(self) -> list[psutil.Process]:
        """Return everything that runs below the server; remembered for `stop`."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self._process.pid).children(recursive=True))
        return [p for p in self._seen if p.is_running()]

    def kernels(self) -> list[psutil.Process]:
        """Return the kernels that run."""
        return [p for p in self.processes() if "ipykernel_launcher" in _command_line(p)]

    def end_kernels(self) -> None:
        """Shut down every kernel, as closing a notebook for good does."""
        self.processes()
        for session in self.get("api/sessions"):
            with contextlib.suppress(OSError):  # it may have ended by itself
                self.get(f"api/sessions/{session['id']}", "DELETE")

    def stop(self) -> None:
        """End the server and everything that it started; twice is harmless."""
        self.processes()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_S)
        for process in self.processes():  # psutil compares start times: no reused pid is hit
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.home, ignore_errors=True)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def start_lab(
    directory: Path, env: dict[str, str] | None = None, application: str = "jupyterlab"
) -> Lab:
    """Start a JupyterLab server whose kernels are this interpreter, and wait until it answers.

    Args:
        directory: Where its notebooks are.
        env: More environment variables.
        application: The module of the front end: "jupyterlab", or "notebook" for Notebook 7.
    """
    # Short, and not below `directory`: the path of a Unix socket holds about 100 characters.
    home = Path(tempfile.mkdtemp(prefix="lab-"))
    _write_json(home / "config/labconfig/default_setting_overrides.json", _SETTINGS)
    kernel = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    _write_json(home / "data/kernels/python3/kernel.json", kernel)
    (home / "tmp").mkdir()
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", application, "--no-browser", "--allow-root"]
    command += ["--expose-app-in-browser", "--ip=127.0.0.1", "--port=0"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={directory}"]
    with (home / "lab.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=_environment(home) | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    lab = Lab(directory, home, process, application)
    try:
        lab.wait_until_ready()
    except BaseException:
        lab.stop()
        raise
    return lab


def _environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_", "PYTEST"))}
    own = {
        "HOME": home,
        "TMPDIR": home / "tmp",
        "IPYTHONDIR": home / "ipython",
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
    }
    return kept | {name: str(path) for name, path in own.items()}


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


# --- the browser ----------------------------------------------------------------------------------


def chromium() -> str | None:
    """Return the path of a Chromium: $CHROMIUM, or one that is installed."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """Give an empty page of a headless Chromium; `page.context.new_page()` gives more.

    While it is open this thread has a running asyncio loop (Playwright's).

    Raises:
        RuntimeError: No Chromium is installed.
    """
    path = chromium()
    if path is None:
        raise RuntimeError(
            "no Chromium found: install it (`apt install chromium`), set CHROMIUM to its path, "
            "or leave these tests out with `-m 'not browser'`"
        )
    with sync_playwright() as playwright:
        application = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-dev-shm-usage"],
            timeout=STEP_S * 1000,
        )
        try:
            context = application.new_context(viewport={"width": 1200, "height": 1000})
            context.set_default_timeout(STEP_S * 1000)
            yield context.new_page()
        finally:
            application.close()


def wait_until(condition: Callable[[], bool], limit_s: float, what: str) -> float:
    """Wait until a condition holds.

    Args:
        condition: Asked again and again.
        limit_s: How long, s.
        what: Named in the error.

    Returns:
        How long it took, s.

    Raises:
        TimeoutError: It did not hold in time.
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > limit_s:
            raise TimeoutError(f"waited {limit_s:g} s in vain for {what}")
        time.sleep(POLL_S)
    return time.monotonic() - start


# --- a notebook -----------------------------------------------------------------------------------


def make_notebook(path: Path, cells: Sequence[str]) -> Path:
    """Write a notebook of these code cells, none of them run."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)
    return path


def open_notebook(page: Page, lab: Lab, path: Path, *, kernel: bool = True) -> None:
    """Open a notebook and wait until it can be used.

    Args:
        kernel: Wait for its kernel too.
    """
    name = path.resolve().relative_to(lab.directory.resolve()).as_posix()
    # A workspace of its own: nothing that another page had open comes back.
    tree = f"lab/workspaces/{secrets.token_hex(4)}/tree"
    tree = "notebooks" if lab.application == "notebook" else tree
    page.goto(f"{lab.url}{tree}/{name}?token={lab.token}")
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.content?.activeCell != null")
    if kernel:
        page.wait_for_function(f"{_PANEL}.sessionContext.session?.kernel?.status === 'idle'")


_PANEL = "window.jupyterapp.shell.currentWidget"
_RUNNING = f"""() => {{
    const panel = {_PANEL};
    const prompts = panel.content.widgets.map(
        w => w.node.querySelector('.jp-InputPrompt')?.innerText);
    const status = panel.sessionContext.session?.kernel?.status;
    return status !== 'idle' || prompts.some(p => p?.includes('*'));
}}"""


def run_all(page: Page) -> None:
    """Run every cell; returns at once."""
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    _wait_for_start(page)


def run_cell(page: Page, cell: int) -> None:
    """Select a cell and press Run; returns at once."""
    page.evaluate(f"n => {{ {_PANEL}.content.activeCellIndex = n; }}", cell)
    _press(page, "notebook:run-cell-and-select-next")
    _wait_for_start(page)


def _wait_for_start(page: Page) -> None:
    """Wait until a cell runs, or (a quick one) has run: afterwards, idle means done."""
    with contextlib.suppress(Exception):
        page.wait_for_function(_RUNNING, timeout=500)


def interrupt(page: Page) -> None:
    """Press Stop."""
    _press(page, "notebook:interrupt-kernel")


def restart_kernel(page: Page) -> None:
    """Press Restart and confirm; returns at once."""
    _press(page, "notebook:restart-kernel")
    page.click(".jp-Dialog button.jp-mod-accept")


def _press(page: Page, command: str) -> None:
    page.click(f".jp-NotebookPanel:not(.lm-mod-hidden) jp-button[data-command='{command}']")


def wait_idle(page: Page, limit_s: float = IDLE_S) -> float:
    """Wait until no cell runs or waits and the kernel is idle; return how long it took, s."""
    start = time.monotonic()
    page.wait_for_function(f"() => !({_RUNNING})()", timeout=limit_s * 1000)
    return time.monotonic() - start


def outputs(page: Page, cell: int) -> list[dict[str, Any]]:
    """Return a cell's outputs as they would be saved (nbformat)."""
    found = page.evaluate(f"n => {_PANEL}.content.model.cells.get(n).toJSON().outputs ?? []", cell)
    return list(found)


def source(page: Page, cell: int) -> str:
    """Return a cell's source."""
    return str(page.evaluate(f"n => {_PANEL}.content.model.cells.get(n).sharedModel.source", cell))


def text(page: Page, cell: int) -> str:
    """Return a cell's stream text and errors, joined in order and without colors."""
    pieces = []
    for output in outputs(page, cell):
        if output["output_type"] == "stream":
            pieces.append(_joined(output["text"]))
        elif output["output_type"] == "error":
            pieces.append("\n".join(output["traceback"]) + "\n")
    return re.sub(r"\x1b\[[0-9;]*m", "", "".join(pieces))


def tables(page: Page, cell: int) -> list[str]:
    """Return the text form of each rich output of a cell that has an HTML form."""
    bundles = [o["data"] for o in outputs(page, cell) if "data" in o]
    return [_joined(data.get("text/plain", "")) for data in bundles if "text/html" in data]


def _joined(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def seen(page: Page, cell: int) -> str:
    """Return what a person sees of a cell's output: the page's text."""
    area = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(cell)
    return area.locator(".jp-OutputArea").first.inner_text()


def wait_seen(page: Page, cell: int, words: str, limit_s: float = IDLE_S) -> float:
    """Wait until a person sees these words in a cell's output; return how long it took, s."""
    return wait_until(lambda: words in seen(page, cell), limit_s, f"{words!r} in cell {cell}")


def save(page: Page) -> None:
    """Save the notebook."""
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")


def screenshot(page: Page, path: Path, cell: int | None = None) -> Path:
    """Write a picture of the page, or of one cell in full."""
    if cell is None:
        page.screenshot(path=path)
    else:
        cells = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell")
        cells.nth(cell).screenshot(path=path)
    return path
