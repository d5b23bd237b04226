"""What must be true after a fault."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.chaos.draw import Draw
from tests.chaos.play import Seen
from tests.integration.kernel import Result, frames_of_ours, plain
from tests.limits import within

END_S = 12.0  # from the fault to the cell's end; a program takes its last steps
CLEANUP_S = 45.0  # of ranks that took an interrupt: 30 s by design
INTERRUPT = "KeyboardInterrupt"  # Python's own: of the notebook's code beside ours
KEEPS_SESSION = ("raise", "Stop", "MemoryError", "sys.exit(text)", "recursion", "none")
LEAVES = {"sys.exit(0)": "finished", "os._exit(0)": "left early"}
KINDS = ("left", "hung", "culprit", "frames", "next", "other")


@dataclass(frozen=True)
class Violation:
    """A promise that was broken.

    Attributes:
        kind: One of `KINDS`.
        text: What was seen.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def violations(draw: Draw, seen: Seen) -> list[Violation]:
    """Return the promises that a fault has broken."""
    found = [Violation("left", line) for line in seen.left]
    if draw.fault != "kernel without descriptors":  # which cannot even list a directory
        found += [Violation("other", f"left over: {name}") for name in seen.stray]
    found += [Violation("frames", line) for line in _frames(seen)]
    if seen.beside is not None and (seen.beside.status, _sums(seen.beside)) != ("ok", ["2.0"] * 2):
        found.append(Violation("other", f"the other notebook: {shown(seen.beside)}"))
    if draw.cause.ends_kernel and seen.played:
        if seen.next is not None:
            found += _next_cell(draw, seen, kept=False)
        return found
    if not seen.ended:
        return [
            *found,
            Violation("hung", f"the cell did not end: {shown(seen.result)}\n{seen.stacks}"),
        ]
    if not within(seen.late_s, CLEANUP_S if _may_clean_up(draw) else END_S):
        found.append(Violation("hung", f"the cell ended {seen.late_s:.1f} s after the fault"))
    if seen.played:
        found += [Violation("culprit", text) for text in _ends(draw, seen.result)]
    if _loses_log(draw, seen) and seen.result.text.count("are incomplete") != 1:
        found.append(Violation("other", f"the log's loss is said once: {shown(seen.result)}"))
    if draw.kept == "launch beside another" and not _beside_ok(draw, seen):
        found.append(Violation("other", f"the thread's run: {shown(seen.result)}"))
    found += _next_cell(draw, seen, kept=None)
    return found


def shown(result: Result) -> str:
    """Return all that a user sees of a cell, as one text."""
    displays = [str(content["data"].get("text/plain", "")) for content in result.displays]
    texts = [
        result.status,
        result.text,
        result.summary,
        *displays,
        result.traceback,
        evalue(result),
    ]
    return plain("\n".join(text for text in texts if text))


def evalue(result: Result) -> str:
    """Return the error's message."""
    return str(result.error.get("evalue", ""))


def _frames(seen: Seen) -> Iterator[str]:
    for result in (seen.result, seen.next, seen.beside):
        text = shown(result) if result is not None else ""
        if frames_of_ours(text):
            yield text
    yield from frames_of_ours(seen.stopped)


def _may_clean_up(draw: Draw) -> bool:
    """Return whether a rank may answer Stop and then wait long for what it had started."""
    return draw.fault != "Stop twice" and "deaf" in draw.program


def _loses_log(draw: Draw, seen: Seen) -> bool:
    """Return whether a full disk costs some of a rank's log."""
    flood = draw.program == "flood of lines" and not draw.early
    return draw.fault == "disk full" and flood and seen.played


def _beside_ok(draw: Draw, seen: Seen) -> bool:
    """Return whether the run in a thread of the same notebook went well."""
    if draw.fault == "kernel without descriptors" or _may_miss_the_store(draw):
        return True
    if seen.result.error.get("ename") == INTERRUPT:
        return True
    return "beside [2.0, 2.0]" in seen.result.text


def _sums(result: Result) -> list[str]:
    return re.findall(r"sum (\d\.\d)", result.text)


# --- how the cell ends ----------------------------------------------------------------------------


def _ends(draw: Draw, result: Result) -> Iterator[str]:
    """Yield what is wrong with how the cell ended: its state, its error, the rank to blame."""
    raises, says = _expected(draw)
    ename = str(result.error.get("ename", ""))
    text = evalue(result)
    if raises is None:
        wrong = bool(text) and not re.search(says, text, re.DOTALL)
    elif not raises:
        wrong = result.status != "ok"
    else:
        wrong = ename != raises or not re.search(says, text, re.DOTALL)
    if wrong:
        yield f"expected {raises if raises is not None else 'any error'} {says!r}: {shown(result)}"
    elif draw.fault == "raise" and not draw.kept.startswith("launch"):
        line = 1 + draw.cell[: draw.cell.index("raise Boom")].count("\n")
        if f"at line {line}:" not in text:
            yield f"expected line {line}: {text}"
    if raises == "RunInterrupted" and "had raised:" in result.traceback:
        yield f"no rank had raised before Stop: {shown(result)}"
    left = _leaves_peers(draw)
    if left and not re.search(left, result.traceback):
        yield f"expected {left!r}: {shown(result)}"


def _expected(draw: Draw) -> tuple[str | None, str]:
    """Return the error's class, and a pattern of its message."""
    cause = draw.cause
    if draw.needs_stop:
        return "RunInterrupted", ""
    if _may_miss_the_store(draw):
        return None, "No space left on device"
    if draw.kept.startswith("launch") and draw.fault in LEAVES and not _leaves_peers(draw):
        return "PullError", f"return value of rank {draw.rank} (did not arrive|was never set)"
    if _leaves_peers(draw):
        gone = LEAVES[draw.fault]
        return "WorkerError", rf"^ranks? [\d, and]*\b{draw.rank}\b[\d, and]* {gone}.*, and rank \d"
    return cause.raises, cause.says.format(rank=draw.rank)


def _may_miss_the_store(draw: Draw) -> bool:
    """Return whether the disk may be full while the ranks start: torch's store needs some bytes."""
    return draw.fault == "disk full" and draw.early


def _leaves_peers(draw: Draw) -> str:
    """Return what must be said of a rank that leaves its peers in a collective without an error."""
    if not draw.what.collective or draw.ranks == 1 or draw.needs_stop:
        return ""
    how = LEAVES.get(draw.fault)
    return rf"rank {draw.rank}: {how}" if how else ""


# --- the next cell --------------------------------------------------------------------------------


def _next_cell(draw: Draw, seen: Seen, *, kept: bool | None) -> Iterator[Violation]:
    """Yield what is wrong with the next cell.

    Args:
        draw: The fault.
        seen: What was seen.
        kept: Whether it ran in a session's old ranks; None if that is to be seen.
    """
    assert seen.next is not None
    ranks = draw.ranks if draw.kept == "session" else 2
    if seen.next.status != "ok" or _sums(seen.next) != [f"{ranks}.0"] * ranks:
        yield Violation("next", shown(seen.next))
        return
    if draw.kept != "session" or kept is False:
        return
    values = sorted(re.findall(r"sum \d\.\d (\w+)", seen.next.text))
    same = values == [str(rank) for rank in range(ranks)]
    if same and draw.cause.kills and seen.played:
        yield Violation("next", f"the session outlived its rank: {shown(seen.next)}")
    told = re.search("session chaos (ended|had ended)", shown(seen.result) + shown(seen.next))
    if not same and not told:
        yield Violation("next", f"the session's end was not told: {shown(seen.result)}")
    if not same and draw.fault in KEEPS_SESSION and not draw.what.deaf and not draw.early:
        yield Violation("next", f"the session is lost: {shown(seen.result)}")
