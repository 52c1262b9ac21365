"""Every way of making a model smaller, at every size: what is the loss, and is it less than by chance?"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_llava.evaluate.paired import Interval
from moe_llava.generate.engine import Engine
from moe_llava.routing.compare import ALL, compare
from moe_llava.routing.operate import Measurement, Operation, apply, halves, measure, time_passes
from moe_llava.routing.score import Sample, Scorer
from moe_llava.routing.surgery import num_experts

_SIZES = 8  # different numbers of experts at most
_SHARES = (0.3, 0.1, 0.03, 0.01)
_RANKS = (32, 8, 2)


@dataclass(frozen=True)
class Point:
    """One model of the sweep. Differences from the whole model, with 95 % intervals; `accuracy` as a share.

    Both models take turns in the passes that are timed, see `time_passes`.
    """

    method: str
    setting: str
    parameters: int
    activated_parameters: int
    weight_bytes: int
    milliseconds: float
    milliseconds_of_whole: float
    nats: float
    nats_low: float
    nats_high: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def sweep(
    engine: Engine,
    samples: Sequence[Sample],
    *,
    random_seeds: int = 3,
    told: Callable[[str], None] = lambda _: None,
) -> tuple[Measurement, list[Point]]:
    """Prune by load, by REAP's score and at random (the control, several seeds), merge, and rebase, at several sizes.

    Returns the whole model's measures and a point for each smaller one. No model is written.
    """
    chosen_by, scored = halves(samples)
    scorer, calibration = Scorer(engine, scored), Scorer(engine, chosen_by, generate=False)
    whole_bytes = sum(parameter.nbytes for parameter in engine.model.parameters())
    whole = measure(scorer, whole_bytes, time_passes([scorer])[0], "whole")
    points = []
    for method, setting, operation in operations(engine, random_seeds):
        told(f"{method} {setting}")
        operated = apply(operation, calibration)
        smaller = scorer.of(Engine(operated.model, engine.processor))
        own, of_whole = time_passes([smaller, scorer])
        after = measure(smaller, operated.weight_bytes, own, f"{method} {setting}")
        difference = compare(whole.scores, after.scores, scored)[ALL]
        assert difference.accuracy is not None
        points.append(_point(method, setting, after, of_whole, difference.log_probability, difference.accuracy))
    return whole, points


def operations(engine: Engine, random_seeds: int) -> list[tuple[str, str, Operation]]:
    """Method, setting and operation of each point."""
    total = num_experts(engine.model)
    sizes = sorted({round(total * part / _SIZES) for part in range(1, _SIZES)} - {0, total}, reverse=True)
    found: list[tuple[str, str, Operation]] = []
    for size in sizes:
        setting = f"{size} of {total} experts"
        found += [
            ("prune by load", setting, Operation("prune", size, "load")),
            ("prune by REAP", setting, Operation("prune", size, "reap")),
            ("merge", setting, Operation("merge", size)),
        ]
        found += [
            ("prune at random", setting, Operation("prune", size, "random", seed=seed)) for seed in range(random_seeds)
        ]
    experts = [one for name, one in engine.model.named_parameters() if ".mlp.experts." in name and one.ndim == 3]
    most = min(min(one.shape[1:]) for one in experts)
    found += [("rebase, sparse", f"{share:.0%} kept", Operation("rebase", share=share)) for share in _SHARES]
    found += [("rebase, low rank", f"rank {rank}", Operation("rebase", rank=rank)) for rank in _RANKS if rank < most]
    return found


def _point(method: str, setting: str, after: Measurement, of_whole: float, nats: Interval, accuracy: Interval) -> Point:
    return Point(
        method,
        setting,
        after.parameters,
        after.activated,
        after.weight_bytes,
        round(after.milliseconds, 2),
        round(of_whole, 2),
        *(nats.mean, nats.low, nats.high),
        *(accuracy.mean, accuracy.low, accuracy.high),
    )


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those that no other point beats in both bytes and log-probability, smallest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (one.weight_bytes, -one.nats)):
        if not front or point.nats > front[-1].nats:
            front.append(point)
    return front


def as_csv(points: Sequence[Point]) -> str:
    """One line a point, names first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(Point.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    return text.getvalue()


_STYLE = {  # colours of Okabe and Ito, and a marker each
    "prune by load": ("#0072b2", "o"),
    "prune by REAP": ("#d55e00", "s"),
    "prune at random": ("#888888", "x"),
    "merge": ("#009e73", "^"),
    "rebase, sparse": ("#cc79a7", "D"),
    "rebase, low rank": ("#e69f00", "v"),
}


def draw(whole: Measurement, points: Sequence[Point], folder: Path) -> list[Path]:
    """`sweep.png` and `sweep.svg`: loss against bytes, with intervals and the front of what nothing beats.

    Raises:
        ValueError: matplotlib is absent.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("The figure needs matplotlib: pip install 'moe-llava[routing]'.") from error
    figure: Any = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    # Models of one size stand a little apart, so that their intervals can be told.
    sizes = [one.weight_bytes / 1e6 for one in points]
    step = 0.011 * (max(sizes) - min(sizes))
    panels = [(left, "nats", 1.0, "change of log-probability, nats an answer")]
    panels += [(right, "accuracy", 100.0, "change of accuracy, percentage points")]
    for axes, name, scale, label in panels:
        for number, (method, (colour, marker)) in enumerate(_STYLE.items()):
            chosen = [one for one in points if one.method == method]
            _draw_method(axes, chosen, name, scale, colour, marker, apart=(number - 2.5) * step)
        axes.axhline(0.0, color="#444444", linewidth=0.8, linestyle=":")
        axes.plot(whole.weight_bytes / 1e6, 0.0, "*", color="black", markersize=13, label="whole model", zorder=5)
        axes.set_xlabel("weights, MB")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    front = [(one.weight_bytes / 1e6, one.nats) for one in pareto(points)]
    front += [(whole.weight_bytes / 1e6, 0.0)] if not front or front[-1][1] < 0 else []
    front_style = {"color": "black", "linewidth": 1, "alpha": 0.6, "label": "nothing beats it"}
    left.step(*zip(*front, strict=True), where="post", **front_style)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "sweep.png", folder / "sweep.svg"]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _draw_method(
    axes: Any, points: list[Point], name: str, scale: float, colour: str, marker: str, apart: float
) -> None:
    if not points:
        return
    x = [one.weight_bytes / 1e6 + apart for one in points]
    y = [scale * getattr(one, name) for one in points]
    low = [value - scale * getattr(one, f"{name}_low") for value, one in zip(y, points, strict=True)]
    high = [scale * getattr(one, f"{name}_high") - value for value, one in zip(y, points, strict=True)]
    axes.errorbar(
        x, y, [low, high], fmt=marker, color=colour, markersize=6, elinewidth=1, alpha=0.85, label=points[0].method
    )
