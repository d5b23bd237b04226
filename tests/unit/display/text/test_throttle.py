"""What is shown live, and what is only counted."""

from __future__ import annotations

from ddp_magic.display.text.throttle import (
    BYTES_BURST,
    BYTES_PER_S,
    LINE_BYTES,
    LINES_BURST,
    Bucket,
    Throttle,
)


def _throttle() -> Throttle:
    return Throttle("/log", Bucket(BYTES_BURST, BYTES_PER_S))


def test_few_lines_pass_at_once() -> None:
    """Nothing is held back below the limits."""
    lines = [f"line {i}" for i in range(LINES_BURST)]
    throttle = _throttle()
    assert throttle.admit(lines, 0.0) == lines
    assert throttle.release(0.0, final=True) == []


def test_a_flood_shows_head_and_tail_and_counts_the_rest() -> None:
    """Every line is shown or counted."""
    throttle = _throttle()
    shown = throttle.admit([f"line {i}" for i in range(100_000)], 0.0)
    rest = throttle.release(0.0, final=True)
    assert rest[0].endswith("lines left out here; all are in /log")
    left_out = int(rest[0].split()[1].replace(",", ""))
    assert len(shown) + left_out + len(rest) - 1 == 100_000
    assert rest[-1] == "line 99999"


def test_a_slow_log_is_never_cut() -> None:
    """Ten lines a second for hours are shown, all of them, as they come."""
    throttle = _throttle()
    for i in range(20_000):
        assert throttle.admit([f"step {i}"], i / 10) == [f"step {i}"]


def test_the_rate_stays_below_what_a_jupyter_server_bears() -> None:
    """Over any 3 s at most 3 MB, from however many ranks."""
    size = Bucket(BYTES_BURST, BYTES_PER_S)
    throttles = [Throttle("/log", size) for _ in range(8)]
    sent: list[tuple[float, int]] = []
    for tick in range(400):
        now = tick * 0.05
        for throttle in throttles:
            lines = throttle.admit(["x" * 1000] * 200, now) + throttle.release(now)
            sent.append((now, sum(map(len, lines))))
    for start in range(17):
        assert sum(n for t, n in sent if start <= t < start + 3) < 3e6


def test_a_huge_line_is_cut_with_a_word() -> None:
    """The log has it whole."""
    (line,) = _throttle().admit(["x" * 10**6], 0.0)
    assert len(line) < LINE_BYTES + 200
    assert "1,000,000 characters" in line


def test_an_unfinished_line_waits_for_room() -> None:
    """It is cut as a whole one, and not shown before there is room for it."""
    throttle = _throttle()
    first = throttle.admit_partial("x" * 10**7, 0.0)
    assert LINE_BYTES < len(first) < LINE_BYTES + 200
    shown = [throttle.admit_partial("y" * 150_000, 0.0) for _ in range(10)]
    assert sum(map(bool, shown)) < 5
    assert throttle.admit_partial("z", 60.0) == "z"
