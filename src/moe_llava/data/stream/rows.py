"""Row `i` of a large source, without holding the others."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Row:
    """One record as it was written.

    Attributes:
        value: what JSON, Parquet or a data set holds; a string where it is JSON that cannot be parsed.
        files: bytes of the images that came with it, by the name under which `value` speaks of them.
    """

    value: Any
    files: dict[str, bytes] = field(default_factory=dict)


class Rows(Protocol):
    """A source of rows in any order.

    Attributes:
        blocks: the first row of each stretch that is read best as a whole (a row group, a shard).
    """

    blocks: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def where(self, index: int) -> str:
        """Where a row stands, for people: `train.jsonl:128`."""
        ...


class Joined:
    """Several sources one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self.parts]).tolist()
        starts = [0, *self._ends[:-1]]
        self.blocks = np.concatenate([part.blocks + start for part, start in zip(self.parts, starts, strict=True)])

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row:
        part, within = self._place(index)
        return part[within]

    def where(self, index: int) -> str:
        part, within = self._place(index)
        return part.where(within)

    def _place(self, index: int) -> tuple[Rows, int]:
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)


def joined(parts: Sequence[Rows]) -> Rows:
    """One source of one or several."""
    return parts[0] if len(parts) == 1 else Joined(parts)


def even_blocks(count: int, size: int) -> np.ndarray:
    """First rows of blocks of `size` rows, where any would do."""
    return np.arange(0, max(count, 1), size, dtype=np.int64)
