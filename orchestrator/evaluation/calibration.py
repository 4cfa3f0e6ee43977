"""Which shift of a NAMM's threshold keeps which fraction: root finding on a curve that is costly to evaluate.

Looks are shared among the fractions that are wanted. Knows nothing of NAMMs, samples or workers, only that a larger
shift keeps less.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

TOLERANCE = 0.005
"""Distance from the wanted fraction at which a shift is good enough."""
LOOKS = 8
"""Most evaluations of the curve for one fraction; three are usual."""
FIRST_STEP = 0.1
"""First step beyond the shifts that are known; scores of evolved memories are of the order of one."""
GROWTH = 4.0
"""Factor by which each further step is longer."""
FIRST_BOUND = 0.02
"""First shift that is tried for an upper bound, and doubled until it keeps little enough."""
HALVINGS = 4
"""Halvings between the last two bounds."""


class Calibration:
    """Shifts for kept fractions.

    kept: returns the fraction that a shift keeps; shift 0 is looked at first, and no shift twice.

    Attributes:
        known: kept fraction by shift, of all looks so far.
    """

    def __init__(self, kept: Callable[[float], float]) -> None:
        self._kept = kept
        self.known = {0.0: kept(0.0)}

    def at_most(self, limit: float) -> float:
        """A shift that keeps at most `limit`, and little less: 0 where that keeps no more.

        Doubling until one keeps little enough, then bisection. Does not end where no shift does.
        """
        if self.known[0.0] <= limit:
            return 0.0
        low, high = 0.0, FIRST_BOUND
        while self._look(high) > limit:
            low, high = high, 2 * high
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self._look(middle) <= limit:
                high = middle
            else:
                low = middle
        return high

    def shift(self, wanted: float) -> float:
        """The shift whose kept fraction is nearest to `wanted`, among those looked at.

        False position between the two known shifts around the fraction, on log-odds (in which the share of scores
        above a threshold is nearly linear), and bisection if that has not halved the interval. For a fraction that
        cannot be reached (less than the tail that no update has seen) it is the nearest one.
        """
        width = math.inf
        for _ in range(LOOKS):
            if abs(self.known[self._nearest(wanted)] - wanted) <= TOLERANCE:
                break
            around = self._around(wanted)
            if around is None:
                at = self._outwards(wanted)
            else:
                low, high = around
                at = (low + high) / 2 if high - low > width / 2 else self._between(low, high, wanted)
                width = high - low
                if not low < at < high:
                    break  # neighbours in floating point
            self._look(at)
        return self._nearest(wanted)

    def shifts(self, wanted: Iterable[float]) -> dict[float, float]:
        """The shift for each fraction. Those nearest to shift 0 come first, so that later ones reuse their steps."""
        own = self.known[0.0]
        return {fraction: self.shift(fraction) for fraction in sorted(wanted, key=lambda f: (abs(f - own), f))}

    def _look(self, shift: float) -> float:
        if shift not in self.known:
            self.known[shift] = self._kept(shift)
        return self.known[shift]

    def _nearest(self, wanted: float) -> float:
        return min(self.known, key=lambda shift: (abs(self.known[shift] - wanted), abs(shift), shift))

    def _around(self, wanted: float) -> tuple[float, float] | None:
        """The two neighbouring shifts of which the first keeps more than wanted, and the second less."""
        for low, high in itertools.pairwise(sorted(self.known)):
            if self.known[low] > wanted > self.known[high]:
                return low, high
        return None

    def _between(self, low: float, high: float, wanted: float) -> float:
        above, below, goal = (_log_odds(f) for f in (self.known[low], self.known[high], wanted))
        at = low + (high - low) * (above - goal) / (above - below)
        margin = 0.05 * (high - low)  # a step in the curve must not trap the search at one end
        return min(max(at, low + margin), high - margin)

    def _outwards(self, wanted: float) -> float:
        least, most = min(self.known), max(self.known)
        if wanted > self.known[least]:
            return least - max(FIRST_STEP, (GROWTH - 1.0) * abs(least))
        return most + max(FIRST_STEP, (GROWTH - 1.0) * abs(most))


def _log_odds(fraction: float) -> float:
    inside = min(max(fraction, 1e-4), 1.0 - 1e-4)
    return math.log(inside / (1.0 - inside))
