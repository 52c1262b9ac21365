"""An order of samples in which batches hold samples of like length, so that little is padded."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_BATCHES_IN_MEGABATCH = 50


class LengthGroupedSampler(Sampler[int]):
    """Every index once an epoch, in batches of like length; the longest batch comes first.

    Samples are shuffled, cut into megabatches of up to 50 batches, and each megabatch is sorted, longest first, and
    cut into batches; the batches are shuffled. What fills no batch comes last. The longest batch leads, so that a
    shortage of memory shows at the first step.

    Args:
        lengths: tokens of each sample.
        batch_size: samples of one step: of all devices together, so that they wait little for each other.
        seed: of the order, together with the epoch (`set_epoch`).
        has_image: if given, a batch is of samples with images or of samples without, never both (but for the last).

    Raises:
        ValueError: if `batch_size` is not positive, or the lists differ in length.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int = 0, has_image: Sequence[bool] | None = None
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give at least 1")
        if has_image is not None and len(has_image) != len(lengths):
            raise ValueError(f"has_image has {len(has_image)} entries for {len(lengths)} lengths; give one each")
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.groups = np.zeros(len(lengths), dtype=bool) if has_image is None else np.asarray(has_image, dtype=bool)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        batches: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        for group in (True, False):
            members = generator.permutation(np.flatnonzero(self.groups == group))
            ordered = self._sort_megabatches(members)
            full = len(ordered) // self.batch_size * self.batch_size
            batches += np.split(ordered[:full], range(self.batch_size, full, self.batch_size)) if full else []
            rest.append(ordered[full:])
        order = generator.permutation(len(batches)).tolist()
        if order:
            longest = max(order, key=lambda index: self.lengths[batches[index]].max())
            order.insert(0, order.pop(order.index(longest)))
        indices = np.concatenate([*(batches[index] for index in order), self._longest_first(np.concatenate(rest))])
        yield from indices.tolist()

    def _sort_megabatches(self, indices: np.ndarray) -> np.ndarray:
        # Small sets get smaller megabatches: sorting all of one would give the same batches every epoch.
        count = min(_BATCHES_IN_MEGABATCH, max(1, len(indices) // (4 * self.batch_size)))
        size = count * self.batch_size
        pieces = [self._longest_first(indices[start : start + size]) for start in range(0, len(indices), size)]
        return np.concatenate([*pieces, np.zeros(0, dtype=np.int64)])

    def _longest_first(self, indices: np.ndarray) -> np.ndarray:
        return indices[np.argsort(-self.lengths[indices], kind="stable")]
