"""A shuffled order of very many rows that takes little memory and can be entered anywhere."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class BlockShuffle(Sampler[int]):
    """Every index once an epoch: blocks in random order, and the rows of each few blocks in random order.

    Rows of a block are read close together, so that a row group or shard is opened once, while neighbours in the file
    are not neighbours in training. In memory are the blocks and the rows of one window.

    Args:
        blocks: the first index of each block, rising from 0.
        count: of all indices.
        window: blocks whose rows are mixed.
        seed: of the order, together with the epoch (`set_epoch`).
    """

    def __init__(self, blocks: np.ndarray, count: int, *, window: int = 4, seed: int = 0) -> None:
        self.starts = np.asarray(blocks, dtype=np.int64)
        self.ends = np.append(self.starts[1:], count)
        self.count = count
        self.window = window
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.starts))
        for first in range(0, len(order), self.window):
            blocks = order[first : first + self.window]
            rows = np.concatenate([np.arange(self.starts[block], self.ends[block]) for block in blocks])
            yield from generator.permutation(rows).tolist()


def scattered(index: int, count: int, seed: int) -> int:
    """Place of `index` in a random permutation of `count` that is never written down (a Feistel network of four rounds,
    walked until it falls inside)."""
    half = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            left, right = right, left ^ (_mixed(right, seed, turn) & mask)
        index = left << half | right
        if index < count:
            return index


def _mixed(value: int, seed: int, turn: int) -> int:
    """Bits that depend on all bits of what is given (splitmix64)."""
    state = (value + 0x9E3779B97F4A7C15 * (seed * 4 + turn + 1)) & 0xFFFFFFFFFFFFFFFF
    state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    state = ((state ^ state >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return state ^ state >> 31
