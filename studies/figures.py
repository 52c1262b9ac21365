"""The study's figures."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from studies.intervals import FEWEST, MARGIN

_WIDEST = 4.0  # points; intervals of few seeds would hide the others


def forest(sections: list[dict[str, Any]], path: Path) -> None:
    """Every comparison: difference of accuracy with its interval, and the paper's own."""
    rows = [(section["letter"], row) for section in sections for row in section["comparisons"]]
    figure, axes = pyplot.subplots(figsize=(8, 0.27 * len(rows) + 1), layout="constrained")
    axes.axvspan(-MARGIN, MARGIN, color="0.93")
    axes.axvline(0, color="0.6", linewidth=0.8)
    for place, (_, row) in enumerate(rows):
        points = row["points"]
        if points and points.seeds >= FEWEST:
            decided = points.excludes_zero
            error = [[points.mean - points.low], [points.high - points.mean]]
            axes.errorbar(points.mean, place, xerr=error, fmt="o", markersize=4, color="C0" if decided else "0.45")
        if row["paper"] is not None:
            axes.plot(row["paper"], place, "D", markersize=5, markerfacecolor="none", color="C3")
    axes.plot([], [], "o", color="C0", label="here, interval without 0")
    axes.plot([], [], "o", color="0.45", label="here, interval with 0")
    axes.plot([], [], "D", markerfacecolor="none", color="C3", label="the paper")
    axes.set_yticks(range(len(rows)), [f"{row['what']}  ({letter})" for letter, row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-_WIDEST, _WIDEST)
    axes.set_xlabel("difference of accuracy, points, 95 % interval over seeds; grey: less than half a point")
    axes.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def divergence(arms: list[dict[str, Any]], path: Path) -> None:
    """How alike the experts of each arm are, and what it scores."""
    found = [arm for arm in arms if arm["seeds"]]
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for arm in found:
        axes.plot(1 - arm["cosine"], arm["accuracy"], "o", color="C0")
        axes.annotate(
            arm["short"], (1 - arm["cosine"], arm["accuracy"]), xytext=(5, 4), textcoords="offset points", fontsize=8
        )
    axes.set_xscale("log")
    axes.set_xlabel("1 - cosine of the experts' weights, mean over pairs and layers")
    axes.set_ylabel("accuracy, %")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
