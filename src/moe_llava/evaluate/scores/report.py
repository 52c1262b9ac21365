"""What a scorer hands back: figures for programs, a table for people."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ScoreReport:
    """The outcome of one benchmark.

    `figures` holds only JSON types. `table` is text, its first row the column names. `n` counts the questions scored.
    """

    figures: dict[str, Any]
    table: list[list[str]]
    n: int


def percent(hits: float, total: int) -> float:
    """Return `100 * hits / total`, and 0 for an empty group, as the official scorers do where they guard at all."""
    return 100 * hits / total if total else 0.0
