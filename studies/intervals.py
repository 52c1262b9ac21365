"""Paired differences over seeds, their intervals, and what they say beside the paper's own figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from studies.arms import Comparison

# Student's t, 97.5 %, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
# Fewer seeds than this say nothing.
FEWEST = 3
# Differences of less than so many points count as none; decided beforehand.
MARGIN = 0.5


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of a paired difference, and its 95 % interval (Student's t); infinite with a single seed."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def within(self, margin: float) -> bool:
        return -margin <= self.low and self.high <= margin


def paired(left: Sequence[float], right: Sequence[float]) -> Difference:
    """Left minus right, seed by seed."""
    values = [one - other for one, other in zip(left, right, strict=True)]
    mean = fmean(values)
    if len(values) < 2:
        return Difference(mean, -math.inf, math.inf, len(values))
    half = _T[len(values) - 1] * stdev(values) / math.sqrt(len(values))
    return Difference(mean, mean - half, mean + half, len(values))


def verdict(difference: Difference, comparison: Comparison) -> str:
    """One sentence, from the interval alone."""
    if difference.seeds < FEWEST:
        return "too few seeds yet"
    here = _finding(difference)
    if comparison.paper is None:
        return f"{here}; the paper has no such figure"
    claims = abs(comparison.paper) >= MARGIN
    if not claims:
        if difference.within(MARGIN):
            return "same: less than half a point here too"
        if difference.low > MARGIN or difference.high < -MARGIN:
            return f"different: {here}"
        return "not decidable here"
    if difference.excludes_zero:
        same = (difference.mean > 0) == (comparison.paper > 0)
        return f"{'same direction' if same else 'different'}: {here}"
    if difference.within(MARGIN):
        return "different: less than half a point here"
    return "not decidable here"


def _finding(difference: Difference) -> str:
    if difference.excludes_zero:
        size = ", by less than half a point" if difference.within(MARGIN) else ""
        return f"{'better' if difference.mean > 0 else 'worse'}{size}"
    return "less than half a point" if difference.within(MARGIN) else "not decidable here"
