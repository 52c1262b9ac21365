"""Runs that take turns, so that whatever else the machine does slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Run = Callable[[], float]


def timed(work: Callable[[], object]) -> Run:
    """A run whose seconds are those of `work`; on a GPU until its kernels have ended."""

    def run() -> float:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def scaled(self, factor: float) -> "Spread":
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Timings:
    """Seconds of each run in each round."""

    seconds: dict[str, list[float]]

    def spread(self, name: str) -> Spread:
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, to: str) -> Spread:
        """How many times longer `name` took than `to`, of the same round."""
        return Spread.of([one / other for one, other in zip(self.seconds[name], self.seconds[to], strict=True)])

    def as_dict(self, baseline: str | None = None) -> dict[str, dict[str, object]]:
        """Of each run its seconds, and its ratio to the baseline."""
        table: dict[str, dict[str, object]] = {}
        for name in self.seconds:
            table[name] = {"seconds": self.spread(name).as_dict(), "runs": len(self.seconds[name])}
            if baseline is not None and name != baseline:
                table[name]["ratio"] = self.ratio(name, baseline).as_dict()
        return table


def interleave(runs: Mapping[str, Run], rounds: int, warm_up: int = 1, budget: float = float("inf")) -> Timings:
    """Every run once a round, in turn; the warm-up rounds are not counted.

    Args:
        budget: seconds after which no new round begins; three rounds are made in any case, where so many are asked for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warm_up):
        for run in runs.values():
            run()
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > budget:
            break
        for name, run in runs.items():
            seconds[name].append(run())
    return Timings(seconds)
