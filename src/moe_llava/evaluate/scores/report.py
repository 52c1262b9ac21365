"""What a scorer hands back: figures for programs, a table for people."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ScoreReport:
    """The outcome of one benchmark.

    `figures` holds only JSON types. `table` is text, its first row the column names. `n` counts the questions scored.
    `marks` is what each question got, in 0..1, by its id (of MMBench each set of rotations): what two runs compare by.
    """

    figures: dict[str, Any]
    table: list[list[str]]
    n: int
    marks: dict[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """Return the table in aligned columns, the first to the left and the others to the right."""
        return columns(self.table)


def columns(table: list[list[str]]) -> str:
    """Return rows in aligned columns, the first to the left and the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    lines = []
    for name, *cells in table:
        aligned = [cell.rjust(width) for cell, width in zip(cells, others, strict=True)]
        lines.append("  ".join([name.ljust(first), *aligned]).rstrip())
    return "\n".join(lines)


def percent(hits: float, total: int) -> float:
    """Return `hits / total * 100`, in this order so that the last bit is the official one; 0 for an empty group."""
    return hits / total * 100 if total else 0.0
