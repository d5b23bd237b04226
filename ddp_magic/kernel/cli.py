"""The terminal's verbs: `ddp-magic status | stacks | stop | attach | show | logs`.

They work while a cell blocks its notebook, for every notebook of the user on this machine;
`attach`, `show` and `logs` also after the notebook has ended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ddp_magic.display.journal.replay import replay
from ddp_magic.display.labels import without_escapes
from ddp_magic.display.outputs import Outputs
from ddp_magic.kernel.background.runs import BackgroundRuns
from ddp_magic.kernel.control import server as control
from ddp_magic.kernel.options.line_magic_options import LOGS_OPTIONS, SHOW_OPTIONS
from ddp_magic.kernel.options.option import Option
from ddp_magic.kernel.past_runs import PastRuns
from ddp_magic.system.run_places import run_roots

ENDED = "of notebooks that have ended, since yesterday (ddp-magic show RUN shows one again):"
_DEAF = "does not answer"
INTERRUPTED = 130  # exit code, as a shell has it for Ctrl-C
NO_KERNEL = "none of your running notebooks on this machine has run a %%ddp cell"


def main(argv: Sequence[str] | None = None, roots: Sequence[Path] | None = None) -> int:
    """Carry out one verb; return the exit code.

    Args:
        argv: The words after the program's name; None for those of this process.
        roots: Where runs lie; None for all places of this user.
    """
    arguments = _parser().parse_args(argv)
    arguments.roots = run_roots() if roots is None else roots
    try:
        return int(arguments.verb(arguments))
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddp-magic", description="Ask about the runs of your notebooks, and end them."
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def add(name: str, verb: Callable[[argparse.Namespace], int], text: str) -> None:
        one = verbs.add_parser(name, help=text, description=text)
        one.set_defaults(verb=verb)
        one.add_argument("run", nargs="?", default="", metavar="RUN", help="a run's id, or its end")
        for option in {"show": SHOW_OPTIONS, "logs": LOGS_OPTIONS}.get(name, ()):
            if option.flags and option.metavar:
                one.add_argument(
                    *option.flags, type=_reader(option), metavar=option.metavar, help=option.help
                )

    add("status", _ask("status"), "Show the runs and sessions of each notebook.")
    add("stacks", _ask("stacks"), "Show the Python stack of every rank of the runs that go on.")
    add("stop", _ask("stop"), "Stop a run, as the notebook's Stop does, or end a session.")
    add("attach", _attach, "Follow a background run to its end; exit with 1 if it fails.")
    add("show", _show, "Show all that a run showed; by default, the newest run.")
    add("logs", _logs, "Print what the ranks of a run wrote; by default, of the newest run.")
    return parser


def _reader(option: Option) -> Callable[[str], object]:
    """Return what reads the value of an option, as the line magics do."""

    def read(text: str) -> object:
        try:
            return option.value(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _ask(verb: str) -> Callable[[argparse.Namespace], int]:
    def ask(arguments: argparse.Namespace) -> int:
        if verb == "stop" and not arguments.run:
            running = [text for _, ok, text in _answers(["running"], arguments.roots) if ok]
            ids = [run for text in running for run in text.split()]
            if len(ids) > 1:  # also those of other notebooks
                print(f"several runs are going on: give the id of one: {' '.join(ids)}")
                return 1
        if verb == "stop":
            PastRuns(lambda: (), arguments.roots).wait_for_start(arguments.run)
        words = [verb, *([arguments.run] if arguments.run else [])]
        answers = list(_answers(words, arguments.roots))
        right = [(who, text) for who, ok, text in answers if ok]
        deaf = [text for who, _, text in answers if text.startswith(f"{who} {_DEAF}")]
        for who, text in right:
            print(f"{who}\n{text}\n" if verb == "status" else text)
        if deaf and right:
            print("\n".join(deaf), file=sys.stderr)
        if verb == "status" and not arguments.run and (ended := _of_ended_notebooks(arguments)):
            print(ended)
            return 0
        if not right:
            # A run is one kernel's: the others need not say that they do not have it.
            texts = dict.fromkeys(text for _, _, text in answers)
            known = [text for text in texts if not text.startswith("unknown ")]
            known = deaf or known or (_ended(arguments) if verb == "stop" else [])
            print("\n".join(known or texts or [NO_KERNEL]), file=sys.stderr)
        return 0 if right else 1

    return ask


def _of_ended_notebooks(arguments: argparse.Namespace) -> str:
    """Return the runs whose notebooks have ended; empty if there are none."""
    lines = PastRuns(lambda: (), arguments.roots).of_ended_notebooks()
    return "\n".join([ENDED, *(f"  {line}" for line in lines)]) if lines else ""


def _ended(arguments: argparse.Namespace) -> list[str]:
    """Return how the run that is meant has ended; nothing if it has not, or there is none."""
    try:
        run = PastRuns(lambda: (), arguments.roots).find(arguments.run)
    except ValueError:
        return []
    has_ended = arguments.run and not run.goes_on
    return [f"run {run.id} has ended: {run.outcome}"] if has_ended else []


def _answers(words: list[str], roots: Sequence[Path]) -> Iterator[tuple[str, bool, str]]:
    for who, path in control.answering(roots):
        try:
            ok, text = control.ask(path, words)
        except ConnectionError:
            path.unlink(missing_ok=True)  # its kernel was killed
            continue
        except TimeoutError as error:
            ok, text = False, f"{who} {_DEAF}: {error}"
        yield who, ok, text


def _show(arguments: argparse.Namespace) -> int:
    try:
        replay(PastRuns(lambda: (), arguments.roots).find(arguments.run), None, arguments.rank)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _attach(arguments: argparse.Namespace) -> int:
    past = PastRuns(lambda: (), arguments.roots)
    background = BackgroundRuns(past)
    try:
        run = background.choose(arguments.run or None, of_any=True)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if not arguments.run:
        print(run.title, file=sys.stderr)
    try:
        run.follow(Outputs(None))
    except KeyboardInterrupt:
        print(f"run {run.id} goes on; `ddp-magic stop {run.id}` ends it", file=sys.stderr)
        return INTERRUPTED
    if (failure := run.failure({})) is not None:
        paint = str if sys.stderr.isatty() else without_escapes
        print(paint("\n".join(failure._render_traceback_())), file=sys.stderr)
        return 1
    if run.background.pull and not run.background.call:
        print(f"values of --pull {run.background.pull}: %ddp_attach {run.id} in a notebook")
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    past = PastRuns(lambda: (), arguments.roots)
    try:
        if not arguments.run:
            print(past.title_of_logs(), file=sys.stderr)  # not in the way of `| grep`
        for line in past.logs(arguments.run, arguments.rank, arguments.lines):
            print(line)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
