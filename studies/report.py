"""Results -> `docs/study.md` and its figures. Runs that are missing are named; nothing is typed by hand.

python studies/report.py
"""

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

sys.path.insert(0, str(Path(__file__).parents[1]))
from studies import figures, smol
from studies.arms import REFERENCE, Arm, Comparison, Part, read_arms, runs
from studies.intervals import FEWEST, Difference, paired, verdict

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "study.md"
Results = dict[str, dict[int, dict[str, Any]]]
Figure = Callable[[dict[str, Any]], float]


def read_results(arms: dict[str, Arm]) -> Results:
    """Arm -> seed -> its result, of the finished runs."""
    return {
        name: {seed: result for seed in range(arm.seeds) if (result := arm.read(seed))} for name, arm in arms.items()
    }


def accuracy(kind: str = "all") -> Figure:
    """Accuracy in percent."""
    return lambda result: 100 * result["scores"][kind]["accuracy"]


def loss(result: dict[str, Any]) -> float:
    """Nats of a reference answer."""
    return result["scores"]["all"]["loss"]


def difference(results: Results, comparison: Comparison, figure: Figure) -> Difference | None:
    """Over the seeds that both arms have; `None` if there are none."""
    left, right = results[comparison.arm], results[comparison.against]
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        return None
    return paired([figure(left[seed]) for seed in seeds], [figure(right[seed]) for seed in seeds])


def comparison_row(results: Results, comparison: Comparison, arms: dict[str, Arm]) -> dict[str, Any]:
    """What the page says of one comparison."""
    points, nats = (difference(results, comparison, figure) for figure in (accuracy(), loss))
    planned = min(arms[comparison.arm].seeds, arms[comparison.against].seeds)
    return {
        "what": f"{_short(comparison.arm)} minus {_short(comparison.against)}",
        "points": points,
        "nats": nats,
        "paper": comparison.paper,
        "source": comparison.source,
        "planned": planned,
        "verdict": verdict(points, comparison) if points else "not run yet",
    }


def _short(name: str) -> str:
    """ "capacity_1_5" -> "capacity 1.5"."""
    return re.sub(r"(\d)_(\d)", r"\1.\2", name).replace("_", " ")


def arm_row(results: Results, arm: Arm) -> dict[str, Any]:
    """Means over the seeds of an arm."""
    found = list(results[arm.name].values())

    def mean(figure: Figure) -> float | None:
        values = [figure(one) for one in found]
        return fmean(values) if values else None

    def spread(figure: Figure) -> float | None:
        return stdev([figure(one) for one in found]) if len(found) > 1 else None

    return {
        "name": arm.name,
        "short": _short(arm.name),
        "label": arm.label,
        "seeds": len(found),
        "planned": arm.seeds,
        "accuracy": mean(accuracy()),
        "spread": spread(accuracy()),
        "easy_vqa": mean(accuracy("easy_vqa")),
        "emoji": mean(accuracy("emoji")),
        "loss": mean(loss),
        "steps": mean(lambda one: one["steps"]),
        "flops": mean(lambda one: one["train_flops"]),
        "cpu": mean(lambda one: one["seconds"]["training_cpu"]),
        "parameters": mean(lambda one: one["parameters"]),
        "activated": mean(lambda one: one["activated_parameters"]),
        "balance": mean(lambda one: one["training"].get("balance", float("nan"))),
        "violation": mean(lambda one: one["training"].get("max_violation", float("nan"))),
        "dropped": mean(lambda one: one["training"].get("dropped", 0.0)),
        "cosine": mean(lambda one: one.get("experts", {}).get("cosine", float("nan"))),
        "cka": mean(lambda one: one.get("experts", {}).get("cka", float("nan"))),
        "spread_of_outputs": mean(lambda one: one.get("experts", {}).get("spread", float("nan"))),
    }


def part_section(results: Results, part: Part, arms: dict[str, Arm]) -> dict[str, Any]:
    return {
        "letter": part.letter,
        "title": part.title,
        "arms": [arm_row(results, arms[name]) for name in part.arms() if results[name]],
        "comparisons": [comparison_row(results, one, arms) for one in part.comparisons],
    }


def missing(results: Results, arms: dict[str, Arm]) -> dict[str, list[int]]:
    """Arm -> seeds without a result."""
    gaps: dict[str, list[int]] = {}
    for arm, seed in runs(arms):
        if seed not in results[arm.name]:
            gaps.setdefault(_short(arm.name), []).append(seed)
    return gaps


def page(results: Results, arms: dict[str, Arm], parts: list[Part]) -> str:
    """The text of `docs/study.md`."""
    finished = [one for of_arm in results.values() for one in of_arm.values()]
    sections = [part_section(results, part, arms) for part in parts]
    # A comparison may stand in two parts.
    rows = list({row["what"]: row for section in sections for row in section["comparisons"]}.values())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"points": _points, "number": _number}
    any_result = next(iter(results[REFERENCE].values()))
    return environment.get_template("page.md.j2").render(
        sections=sections,
        ways=len(arms),
        conversations=round(any_result["steps"] * arms[REFERENCE].recipe(0).stages[REFERENCE].batch_size, -2),
        finished=len(finished),
        planned=len(runs(arms)),
        missing=missing(results, arms),
        answers=_answers(sections),
        cpu_minutes=sum(one["seconds"]["training_cpu"] for one in finished) / 60,
        verdicts=Counter(
            row["verdict"].partition(":")[0].partition(";")[0] for row in rows if row["paper"] is not None
        ),
        claims=sum(row["paper"] is not None for row in rows),
        comparisons=len(rows),
        sizes={kind: of["n"] for kind, of in any_result["scores"].items()},
        packages=any_result["environment"]["packages"],
        smol=smol.read_results(),
    )


def _answers(sections: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the page says in short; `None` while runs are missing for it."""
    found = {row["what"]: row for section in sections for row in section["comparisons"]}
    if any(row["points"] is None or row["points"].seeds < FEWEST for row in found.values()):
        return None
    design = [row for section in sections if section["letter"] in "cdfgi" for row in section["comparisons"]]
    apart = {arm["short"]: arm for section in sections if section["letter"] == "h" for arm in section["arms"]}
    return {"row": found, "design": design, "largest": max(design, key=lambda row: abs(row["points"].mean)), **apart}


def _points(value: Difference | None, digits: int = 2) -> str:
    if value is None:
        return ""
    if value.seeds < 2:
        return f"{value.mean:+.{digits}f} (one seed)"
    return f"{value.mean:+.{digits}f} ({value.low:+.{digits}f} to {value.high:+.{digits}f})"


def _number(value: float | None, form: str = ".1f") -> str:
    return "" if value is None or value != value else format(value, form)


def main() -> None:
    arms, parts = read_arms()
    results = read_results(arms)
    if not results[REFERENCE]:
        sys.exit("No result of the reference arm yet: run `python studies/run.py` first.")
    folder = PAGE.parent / "figures"
    sections = [part_section(results, part, arms) for part in parts]
    figures.forest(sections, folder / "study.png")
    figures.divergence(next(one for one in sections if one["letter"] == "h"), folder / "study-experts.png")
    PAGE.write_text(page(results, arms, parts))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
