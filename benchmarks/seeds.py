"""Several runs of one recipe side by side: mean and standard deviation of each accuracy, and of sparse minus dense.

for seed in 0 1 2; do
    moe-llava train recipes/tiny.toml --seed $seed --output runs/tiny-$seed --resume
done
python benchmarks/seeds.py runs/tiny-*/report.json
"""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def rows(report: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Sets of questions, and their kinds, by name."""
    for key, value in report.items():
        label = f"{name} {key}".strip().replace("_", " ")
        if not isinstance(value, dict):
            continue
        if "n" in value:
            yield label, value
            yield from ((f"{label}: {kind}".replace("_", " "), entry) for kind, entry in value.get("kinds", {}).items())
        else:
            yield from rows(value, label)


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def main(paths: list[str]) -> None:
    reports = [dict(rows(json.loads(Path(path).read_text()))) for path in paths]
    print("| questions | dense twin | sparse | sparse - dense | chance | n |\n|---|---|---|---|---|---|")
    for name, first in reports[0].items():
        dense, sparse = ([report[name][model] for report in reports] for model in ("dense", "sparse"))
        difference = [right - left for left, right in zip(dense, sparse, strict=True)]
        chance = f"{100 * first['chance']:.1f}" if "chance" in first else ""
        print(f"| {name} | {spread(dense)} | {spread(sparse)} | {spread(difference)} | {chance} | {first['n']:,} |")
    first_set = next(iter(reports[0]))
    print(f"\n| run | dense twin, {first_set} | sparse, {first_set} |\n|---|---|---|")
    for path, report in zip(paths, reports, strict=True):
        entry = report[first_set]
        print(f"| {Path(path).parent.name} | {100 * entry['dense']:.2f} | {100 * entry['sparse']:.2f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
