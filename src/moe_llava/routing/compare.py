"""Scores before and after a change -> differences with intervals, for all answers, by modality and by question type."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_llava.evaluate.paired import Interval, paired_bootstrap
from moe_llava.routing.score import Sample, Scores

ALL = "all"
FEW = 20  # independent images or questions below which no interval is trusted


@dataclass(frozen=True)
class Difference:
    """After minus before: `log_probability` in nats an answer, `accuracy` as a share, or `None` without answers."""

    n: int
    log_probability: Interval
    accuracy: Interval | None

    @property
    def all_zero(self) -> bool:
        return self.log_probability.all_zero and (self.accuracy is None or self.accuracy.all_zero)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready: mean, low and high of each; `groups` are the independent images or questions."""
        figures = {"log_probability": self.log_probability, "accuracy": self.accuracy}
        return {"n": self.n, "groups": self.log_probability.groups, "exactly_zero": self.all_zero} | {
            name: {"mean": one.mean, "low": one.low, "high": one.high} for name, one in figures.items() if one
        }


def splits(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Name -> the samples in it: all, each modality and each question type, where there are several."""
    found: dict[str, np.ndarray] = {ALL: np.ones(len(samples), dtype=bool)}
    for values in ([one.modality for one in samples], [one.kind for one in samples]):
        names = sorted(set(values))
        if len(names) > 1:
            found |= {name: np.array([value == name for value in values]) for name in names}
    return found


def compare(
    before: Scores,
    after: Scores,
    samples: Sequence[Sample],
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Paired differences of each split. Whole images are drawn, because answers about one picture go together."""
    groups = np.array([sample.group for sample in samples])

    def interval(values: np.ndarray, members: np.ndarray) -> Interval:
        return paired_bootstrap(
            values[members], seed=seed, resamples=resamples, confidence=confidence, groups=groups[members].tolist()
        )

    nats = after.log_probability - before.log_probability
    points = None if before.right is None or after.right is None else after.right - before.right
    return {
        name: Difference(
            n=int(members.sum()),
            log_probability=interval(nats, members),
            accuracy=None if points is None else interval(points, members),
        )
        for name, members in splits(samples).items()
    }
