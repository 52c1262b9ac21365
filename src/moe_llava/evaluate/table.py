"""The table of the papers: our rows under theirs, in the layout of MoE-LLaVA's model zoo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Benchmark -> head of its column, in the published order. MME is a sum of points and stays out of the average.
COLUMNS: Mapping[str, str] = {
    "vqav2": "VQAv2",
    "gqa": "GQA",
    "vizwiz": "VizWiz",
    "scienceqa": "SQA-IMG",
    "textvqa": "T-VQA",
    "pope": "POPE",
    "mme": "MME",
    "mmbench": "MM-Bench",
    "mmvet": "MM-Vet",
}
NOT_AVERAGED = "mme"
ABSENT = "-"


@dataclass(frozen=True)
class Line:
    """A model's figures by benchmark; `activated` is how its parameters per token are printed."""

    model: str
    activated: str
    figures: Mapping[str, float]

    @property
    def average(self) -> float | None:
        """Mean of the eight benchmarks without MME; None unless all of them are there."""
        averaged = [name for name in COLUMNS if name != NOT_AVERAGED]
        if any(name not in self.figures for name in averaged):
            return None
        return sum(self.figures[name] for name in averaged) / len(averaged)

    def cells(self) -> list[str]:
        """Model, parameters, average and figures, one decimal each; "-" for what there is not."""
        values = [self.average, *(self.figures.get(name) for name in COLUMNS)]
        return [self.model, self.activated, *(ABSENT if value is None else f"{value:.1f}" for value in values)]


def _published(model: str, activated: str, *figures: float) -> Line:
    return Line(model, activated, dict(zip(COLUMNS, figures, strict=True)))


# The model zoo in MoE-LLaVA's README (github.com/PKU-YuanGroup/MoE-LLaVA).
PUBLISHED = (
    _published("MoE-LLaVA-1.6Bx4-Top2", "2.0B", 76.7, 60.3, 36.2, 62.6, 50.1, 85.7, 1318.1, 60.2, 26.9),
    _published("MoE-LLaVA-1.8Bx4-Top2", "2.2B", 76.2, 61.5, 32.6, 63.1, 48.0, 87.0, 1291.6, 59.6, 25.3),
    _published("MoE-LLaVA-2.7Bx4-Top2", "3.6B", 77.6, 61.4, 43.9, 68.5, 51.4, 86.3, 1423.0, 65.2, 34.3),
    _published("MoE-LLaVA-1.6Bx4-Top2-384", "2.0B", 78.6, 61.5, 40.5, 63.9, 54.3, 85.9, 1335.7, 63.3, 32.3),
    _published("MoE-LLaVA-2.7Bx4-Top2-384", "3.6B", 79.9, 62.6, 43.7, 70.3, 57.0, 85.7, 1431.3, 68.0, 35.9),
    _published("LLaVA-1.5", "7B", 78.5, 62.0, 50.0, 66.8, 58.2, 85.9, 1510.7, 64.3, 30.5),
)


def rows(ours: Sequence[Line]) -> list[list[str]]:
    """Heads, published rows, then ours."""
    return [["Model", "Activated", "Avg", *COLUMNS.values()], *(line.cells() for line in (*PUBLISHED, *ours))]


def markdown(ours: Sequence[Line]) -> str:
    """The same for a file."""
    heads, *lines = rows(ours)
    rule = ["---", *["--:"] * (len(heads) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, rule, *lines))
