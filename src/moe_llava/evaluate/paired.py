"""Two models, the same questions: how sure is the difference?"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK = 2**22  # numbers drawn at once


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds it with probability `confidence`.

    Attributes:
        groups: independent observations behind it.
        all_zero: every single difference is exactly 0.
    """

    mean: float
    low: float
    high: float
    confidence: float
    groups: int
    all_zero: bool

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    differences: Sequence[float] | np.ndarray,
    *,
    seed: int = 0,
    resamples: int = 4000,
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """Percentile bootstrap of the mean of paired differences (Efron and Tibshirani 1993, chapter 13).

    Args:
        differences: one a question: second model minus first.
        groups: what the questions share (an image); whole groups are drawn, because their answers are not independent.

    Raises:
        ValueError: no differences, or some are not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("a paired comparison needs at least one difference, and all of them finite.")
    keys = np.arange(len(values)) if groups is None else _numbers(groups)
    counts = np.bincount(keys).astype(np.float64)
    if not values.any():
        return Interval(0.0, 0.0, 0.0, confidence, len(counts), all_zero=True)
    sums = np.bincount(keys, weights=values)
    generator = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    rows = max(1, _CHUNK // len(sums))
    for start in range(0, resamples, rows):
        drawn = generator.integers(len(sums), size=(min(rows, resamples - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high), confidence, len(sums), all_zero=False)


def _numbers(groups: Sequence[Hashable]) -> np.ndarray:
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(group, len(known)) for group in groups])
