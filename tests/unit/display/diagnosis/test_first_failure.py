"""Who failed first, and how that is said."""

from __future__ import annotations

from ddp_magic.display.diagnosis import first_failure as diagnose
from ddp_magic.display.diagnosis.first_failure import Failure
from ddp_magic.wire.worker_events import Error, Finished


def _error(rank: int, evalue: str, time: float = 0.0, ename: str = "RuntimeError") -> Error:
    return Error(rank=rank, time=time, ename=ename, evalue=evalue, traceback=(), line=3)


def _raised(rank: int, time: float, evalue: str) -> Failure:
    return Failure(rank=rank, time=time, error=_error(rank, evalue, time))


def test_the_earliest_failure_is_the_cause() -> None:
    """By time, whatever the order of the ranks."""
    failures = [_raised(0, 2.0, "late"), _raised(1, 1.0, "early")]
    assert diagnose.first_failure(failures).rank == 1


def test_a_victim_is_blamed_only_if_there_is_nobody_else() -> None:
    """gloo's complaint comes milliseconds before the news of the death."""
    victim = _raised(0, 1.0, "[gloo/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    death = Failure(rank=1, time=1.01, code=-9)
    assert diagnose.first_failure([victim, death]) is death
    assert diagnose.first_failure([victim]) is victim


def test_an_abort_says_what_cpp_raised() -> None:
    """Of several in its output the last one; gloo's complaint about sizes in words."""
    terminate = "terminate called after throwing an instance of 'std::{}'\n  what():  {}\nmore\n"
    words = terminate.format("out_of_range", "old") + terminate.format("bad_alloc", "no memory")
    aborted = Failure(rank=0, time=0.0, code=-6, last_words=words)
    assert diagnose.describe(aborted).endswith("SIGABRT (exit -6): C++ raised: no memory")
    assert aborted.received_bytes is None
    sizes = "[enforce fail at pair.cc:456] op.preamble.length <= op.nbytes. 8 vs 4. Received data"
    words = terminate.format("x", sizes)
    aborted = Failure(rank=0, time=0.0, code=-6, last_words=words)
    assert "gloo received 8 bytes for a buffer of 4" in diagnose.describe(aborted)
    assert aborted.received_bytes == 8
    silent = diagnose.describe(Failure(rank=0, time=0.0, code=-6, last_words="nothing of it"))
    assert silent.endswith("C code aborted; the rank's output above may say why")


def test_every_end_has_words() -> None:
    """Signal names, codes and what was said."""
    assert "SIGKILL (exit -9): often the machine ran out of memory" in diagnose.describe_exit(-9)
    assert "killed by SIGTERM" in diagnose.describe_exit(-15)
    assert "code 3" in diagnose.describe_exit(3)
    said = Finished(rank=2, time=0.0, code=1, message="no data")
    text = diagnose.describe(Failure(rank=2, time=0.0, code=1, finished=said))
    assert text == "rank 2 ended by sys.exit with code 1: no data"
    assert diagnose.describe(_raised(1, 0.0, "x")) == "rank 1 raised RuntimeError at line 3: x"


def test_a_headline_is_one_line_without_escape_sequences() -> None:
    """The closing line is no terminal: colors and links would be shown as they are."""
    link = "\x1b]8;;https://x.org\x1b\\here\x1b]8;;\x1b\\"
    assert diagnose.headline(f"\n \x1b[1;31mno\x1b[0m room\x00\x08, see {link}\x1b[K\nmore\n") == (
        "no room, see here ..."
    )
    assert diagnose.headline("a\tb \u65e5") == "a\tb \u65e5"
    assert diagnose.headline("\x1b[31m\n") == ""
