"""The study's figures."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from studies.arms import REFERENCE
from studies.intervals import FEWEST, MARGIN

_WIDEST = 6.5  # points; intervals of few seeds would hide the others


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


def divergence(section: dict[str, Any], path: Path) -> None:
    """How far the experts of each arm have moved apart, and what that changes against the reference arm."""
    apart = {arm["short"]: 1 - arm["cosine"] for arm in section["arms"]}
    figure, axes = pyplot.subplots(figsize=(6.5, 3.5), layout="constrained")
    axes.axhspan(-MARGIN, MARGIN, color="0.93")
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.plot(apart[REFERENCE], 0, "o", color="0.45")
    names = {REFERENCE: (apart[REFERENCE], 0.0)}
    for row in section["comparisons"]:
        name, points = row["what"].partition(" minus ")[0], row["points"]
        if points and points.seeds >= FEWEST:
            error = [[points.mean - points.low], [points.high - points.mean]]
            axes.errorbar(apart[name], points.mean, yerr=error, fmt="o", markersize=4, color="C0")
            names[name] = (apart[name], points.mean)
    for name, place in names.items():  # to the left, away from the zero line
        offset = (-6, 4) if place[1] >= 0 else (-6, -12)
        axes.annotate(name, place, xytext=offset, textcoords="offset points", fontsize=8, ha="right")
    axes.margins(x=0.15)
    axes.set_xscale("log")
    axes.set_xlabel("1 - cosine of the experts' weights, mean over pairs and layers")
    axes.set_ylabel(f"accuracy minus {REFERENCE}'s, points")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
