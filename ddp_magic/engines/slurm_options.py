"""Which of the user's arguments srun cannot be given here, and why. Pure.

All others are srun's own affair: it knows which there are, in its version and at its site.
"""

from __future__ import annotations

from collections.abc import Sequence

_COUNT = "-n and -N of %%ddp say how many ranks and nodes there are"
_SHOWN = "the notebook shows the ranks' output, and %ddp_logs all of it"
_ASKS = "ranks ask in the notebook"
_PRINTS = "srun would print something and start nothing; call it in a terminal"
# By name: options that would break the streams, hide the queue, or start something else.
_REFUSED = {
    **dict.fromkeys(("-n", "--ntasks", "-N", "--nodes", "--ntasks-per-node"), _COUNT),
    **dict.fromkeys(("-o", "--output", "-e", "--error"), _SHOWN),
    **dict.fromkeys(("-i", "--input", "--pty", "--interactive"), _ASKS),
    **dict.fromkeys(("-h", "--help", "--usage", "-V", "--version", "--test-only"), _PRINTS),
    **dict.fromkeys(("-u", "--unbuffered"), "it tears lines apart"),
    **dict.fromkeys(("-Q", "--quiet"), "it hides why a job waits; use -q of %%ddp"),
    "--multi-prog": "every node starts the same program",
    "--bcast": "the nodes start their own Python, at its own place",
    "--batch": "use --detach of %%ddp",
}
_WITH_VALUE = "ABbCcDdGJLmMpqrStTwWx"  # short options of which what follows is the value


def problem_of(arguments: Sequence[str]) -> str:
    """Return which of these arguments of srun cannot be used, and why; empty if all can."""
    waiting = ""  # an option whose value comes next
    takes_word = False  # the next word may be the value of a long option
    for word in arguments:
        if waiting:
            waiting = ""
        elif word.startswith("--") and word != "--":
            name, equals, _ = word.partition("=")
            if refused := _refused(name):
                return refused
            takes_word = not equals
            continue
        elif word.startswith("-") and len(word) > 1 and word != "--":
            for place, letter in enumerate(word[1:], 2):
                if refused := _refused(f"-{letter}"):
                    return refused
                if letter in _WITH_VALUE:
                    waiting = "" if word[place:] else f"-{letter}"
                    break
        elif not takes_word:
            return f"{word} is not an option of srun, whose options begin with -, such as -p gpu"
        takes_word = False
    return f"{waiting} needs a value" if waiting else ""


def _refused(name: str) -> str:
    """Return why an option cannot be used; srun takes the beginning of a long name for it."""
    for full, why in _REFUSED.items():
        if name == full or (len(name) > len("--x") and full.startswith(name)):
            return f"{name} cannot be used: {why}"
    return ""
