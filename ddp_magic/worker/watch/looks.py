"""When the profile looks at the main thread: at moments that all ranks share. Pure."""

from __future__ import annotations

PERIOD_S = 0.02
SAMPLES = 30_000  # after so many, and each time that the time has doubled, the period doubles
_LOOK_COST = 0.005  # share of the time that looks may cost
_MEAN_OF = 25  # looks
_MOST = 8  # periods; a look in more would see too little
_GOLDEN = 0.6180339887498949  # multiples of it are spread most evenly, modulo 1


class Looks:
    """How often to look: less often where a look costs more, and in a long run.

    Attributes:
        every: One look in so many periods: 1, 2, 4, ...
    """

    def __init__(self) -> None:
        self.every = 1
        self._cost_s = 0.0  # of a look, mean of the last ones
        self._count = 0

    def add(self, cost_s: float, elapsed_s: float) -> None:
        """Take what a look has cost.

        Args:
            cost_s: The processor time of this thread, in seconds.
            elapsed_s: Seconds since the beginning of the profile.
        """
        self._count += 1
        self._cost_s += (cost_s - self._cost_s) * max(1.0 / self._count, 1.0 / _MEAN_OF)
        budget_s = _LOOK_COST * PERIOD_S * self.every
        long = elapsed_s > SAMPLES * PERIOD_S * self.every
        if long or (self._count >= _MEAN_OF and self._cost_s > budget_s and self.every < _MOST):
            self.every *= 2
            self._count = 0
        elif self._count > 10 * _MEAN_OF and self._cost_s < budget_s / 4 and self.every > 1:
            if elapsed_s < SAMPLES * PERIOD_S * self.every / 2:
                self.every //= 2
            self._count = 0


def next_look(time: float, every: int = 1) -> float:
    """Return when the next look is due, in seconds since the epoch: the same on all ranks.

    So it is known what one rank did when another was seen to wait for it. There is one look in
    each period, at another moment of each, so that no rhythm of the program escapes.
    """
    period = int(time / PERIOD_S) // every * every
    while (due := (period + period * _GOLDEN % 1.0) * PERIOD_S) <= time:
        period += every
    return due
