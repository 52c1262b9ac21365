"""Two runs on the same questions: paired differences, how sure they are, and a chart."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from moe_llava.evaluate.runner import MARKS, SCORES
from moe_llava.train.folder import write_json

RESAMPLES = 10_000
COLOURS = ("#3b6fb6", "#e08a2e")


@dataclass(frozen=True)
class Comparison:
    """One benchmark, run A against run B; marks are percent of full marks over its questions.

    Attributes:
        figures: the benchmark's own figure in A and B, which may weigh the questions differently (F1, points).
        interval: 95 % of bootstrap resamples of the difference B - A, questions drawn in pairs.
        only_a: questions on which A got more; `only_b` those on which B did.
        p: two-sided exact McNemar test of those two counts (of unequal marks, where marks are not all or nothing).
        intervals: the same bootstrap of A and of B alone.
    """

    benchmark: str
    n: int
    figures: tuple[float, float]
    marks: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    only_a: int
    only_b: int
    p: float
    intervals: tuple[tuple[float, float], tuple[float, float]]


def compare(first: Path, second: Path) -> list[Comparison]:
    """Compare the `--out` folders of two evaluations, each benchmark that both have.

    Raises:
        ValueError: a folder holds no scores, none is in both, or the two were not asked the same.
    """
    runs = [_runs(folder) for folder in (first, second)]
    shared = [name for name in runs[0] if name in runs[1]]
    if not shared:
        raise ValueError(f"{first} ({', '.join(runs[0])}) and {second} ({', '.join(runs[1])}) share no benchmark")
    return [_compare(name, runs[0][name], runs[1][name]) for name in shared]


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value: how likely so uneven a split of the discordant pairs is if both are equally good.

    McNemar (1947) with the binomial distribution in place of chi-square; 1 where no pair differs.
    """
    total = only_a + only_b
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**total)


def bootstrap(values: Float[np.ndarray, "question"], seed: int = 0) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the mean over resampled questions (percentile bootstrap, Efron 1979)."""
    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    # Drawing n questions with replacement is drawing how often each distinct value comes.
    drawn = generator.multinomial(len(values), counts / len(values), size=RESAMPLES)
    low, high = np.percentile(drawn @ distinct / len(values), [2.5, 97.5])
    return float(low), float(high)


def _runs(folder: Path) -> dict[str, Path]:
    """Benchmark -> folder of its scores."""
    found = [path.parent for path in (folder / SCORES, *sorted(folder.glob(f"*/{SCORES}"))) if path.is_file()]
    scored = [path for path in found if (path / MARKS).is_file()]
    if not scored:
        raise ValueError(f"{folder} holds no scored evaluation; give the --out of one that has scores")
    return {json.loads((path / SCORES).read_text())["benchmark"]: path for path in scored}


def _compare(name: str, first: Path, second: Path) -> Comparison:
    marks = [json.loads((folder / MARKS).read_text()) for folder in (first, second)]
    if marks[0].keys() != marks[1].keys():
        differing = sorted(marks[0].keys() ^ marks[1].keys())
        raise ValueError(
            f"{name}: {first} and {second} were not asked the same; {len(differing)} questions are in one of them only "
            f"(first {', '.join(differing[:3])})"
        )
    a, b = (100 * np.array([of[key] for key in marks[0]], dtype=np.float64) for of in marks)
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    figures = [json.loads((folder / SCORES).read_text())["figure"] for folder in (first, second)]
    return Comparison(
        benchmark=name,
        n=len(a),
        figures=(figures[0], figures[1]),
        marks=(float(a.mean()), float(b.mean())),
        difference=float((b - a).mean()),
        interval=bootstrap(b - a),
        only_a=only_a,
        only_b=only_b,
        p=mcnemar(only_a, only_b),
        intervals=(bootstrap(a), bootstrap(b)),
    )


def as_json(comparisons: Sequence[Comparison], first: Path, second: Path) -> dict[str, Any]:
    """JSON-ready."""
    return {"a": str(first), "b": str(second), "benchmarks": [asdict(one) for one in comparisons]}


def rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Heads, then one row a benchmark: marks in percent."""
    table = [["benchmark", "n", "A", "B", "B - A", "95 % interval", "only A", "only B", "McNemar p"]]
    for one in comparisons:
        interval = f"{one.interval[0]:+.2f} … {one.interval[1]:+.2f}"
        marks = (f"{mark:.2f}" for mark in one.marks)
        counts = (f"{count:,}" for count in (one.only_a, one.only_b))
        p = f"{one.p:.3g}" if one.p >= 1e-4 else "< 0.0001"
        table.append([one.benchmark, f"{one.n:,}", *marks, f"{one.difference:+.2f}", interval, *counts, p])
    return table


def write(comparisons: Sequence[Comparison], first: Path, second: Path, out: Path) -> None:
    """Write `compare.json`, `compare.png` and `compare.svg`.

    Raises:
        ValueError: matplotlib is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "compare.json", as_json(comparisons, first, second))
    figure = chart(comparisons, [f"A: {first}", f"B: {second}"])
    for suffix in ("png", "svg"):
        beside = out / f".compare.writing.{suffix}"
        figure.savefig(beside, dpi=160)
        beside.replace(out / f"compare.{suffix}")


def chart(comparisons: Sequence[Comparison], labels: Sequence[str]) -> Any:
    """A matplotlib figure: two bars a benchmark, with their bootstrap intervals."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a chart needs matplotlib: pip install 'moe-llava[figures]'") from error
    figure = Figure(figsize=(max(4.5, 1.3 * len(comparisons) + 2), 3.8), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(comparisons))
    for at, (label, colour) in enumerate(zip(labels, COLOURS, strict=True)):
        heights = np.array([one.marks[at] for one in comparisons])
        spread = np.array([one.intervals[at] for one in comparisons]).T
        errors = np.abs(spread - heights)
        bars = axes.bar(places + 0.37 * (at - 0.5), heights, 0.34, label=label, color=colour)
        axes.errorbar(places + 0.37 * (at - 0.5), heights, errors, fmt="none", ecolor="#333333", capsize=3, lw=1)
        axes.bar_label(bars, [f"{height:.1f}" for height in heights], label_type="center", color="white", fontsize=9)
    axes.set_xticks(places, [f"{one.benchmark}\n{one.n:,} questions" for one in comparisons])
    axes.set_xlim(-0.6, len(comparisons) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_ylabel("marks, % (whiskers: 95 % bootstrap)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", frameon=False, fontsize=9)
    return figure
