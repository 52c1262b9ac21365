"""Which sample a token belongs to and its place in it, when samples run in batches that go on, shrink and end."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int


class Sequences:
    """The samples of a trace, numbered in the order in which they began.

    Attributes:
        next: number of the next sample.
        running: sample of each row of the running batch.
    """

    def __init__(self) -> None:
        self.next = 0
        self.running = np.zeros(0, dtype=np.int64)
        self._names: dict[int, str] = {}
        self._reached: dict[int, tuple[int, int, int]] = {}

    def begin(self, batch: int, names: Sequence[str] = ()) -> None:
        """New samples, one a row; their names are their numbers where none are given."""
        self.running = np.arange(self.next, self.next + batch)
        self.next += batch
        numbers = self.running.tolist()
        self._names.update(zip(numbers, names or map(str, numbers), strict=True))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some rows."""
        self.running = self.running[list(rows)]

    def names_of(self, sample: Int[np.ndarray, " token"]) -> list[str]:
        """The name of each token's sample."""
        return [self._names[number] for number in sample.tolist()]

    def place(
        self, sample: Int[np.ndarray, " token"], is_image: Bool[np.ndarray, " token"], ends: Bool[np.ndarray, " token"]
    ) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"], Bool[np.ndarray, " token"]]:
        """Of tokens in the order in which they ran: position in the sample, image tokens before, whether it has ended.

        What was placed before counts. `ends` are tokens that end their sample; they are no part of it themselves.
        """
        counted = np.stack([np.ones_like(sample), is_image, ends], axis=1)
        order = np.argsort(sample, kind="stable")
        numbers, starts, lengths = np.unique(sample[order], return_index=True, return_counts=True)
        reached = np.array([self._reached.get(number, (0, 0, 0)) for number in numbers.tolist()]).reshape(-1, 3)
        through = counted[order].cumsum(axis=0)
        through += np.repeat(reached - through[starts] + counted[order[starts]], lengths, axis=0)
        lasts = through[starts + lengths - 1].tolist()
        self._reached |= {number: tuple(last) for number, last in zip(numbers.tolist(), lasts, strict=True)}
        through[order] = through.copy()  # back to the order of running
        position, patches, _ = (through - counted).T
        return position, patches, through[:, 2] > 0

    def forget(self) -> None:
        """Keep nothing of samples that no longer run."""
        running = set(self.running.tolist())
        self._names = {number: name for number, name in self._names.items() if number in running}
        self._reached = {number: reached for number, reached in self._reached.items() if number in running}
