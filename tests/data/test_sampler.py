"""Every sample once an epoch, in batches of like length."""

import numpy as np
import pytest

from moe_llava.data import LengthGroupedSampler

LENGTHS = np.random.default_rng(0).integers(10, 500, 333).tolist()


def batches(sampler: LengthGroupedSampler, size: int) -> list[list[int]]:
    indices = list(sampler)
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def padding(order: list[list[int]]) -> int:
    return sum(max(LENGTHS[i] for i in batch) * len(batch) - sum(LENGTHS[i] for i in batch) for batch in order)


@pytest.mark.parametrize("size", [0, 1, 3, 8, 333])
def test_every_index_once(size: int) -> None:
    sampler = LengthGroupedSampler(LENGTHS[:size], batch_size=8, seed=1)
    assert sorted(sampler) == list(range(size))
    assert len(sampler) == size


def test_little_is_padded_and_the_longest_batch_is_first() -> None:
    order = batches(LengthGroupedSampler(LENGTHS, batch_size=8, seed=1), 8)
    shuffled = np.random.default_rng(1).permutation(333).tolist()
    assert padding(order) < 0.25 * padding([shuffled[start : start + 8] for start in range(0, 333, 8)])
    assert max(LENGTHS[index] for index in order[0]) == max(LENGTHS)


def test_seed_and_epoch_make_the_order() -> None:
    first, second = LengthGroupedSampler(LENGTHS, 8, seed=1), LengthGroupedSampler(LENGTHS, 8, seed=1)
    assert list(first) == list(second) == list(first)
    second.set_epoch(1)
    assert list(first) != list(second)
    assert list(first) != list(LengthGroupedSampler(LENGTHS, 8, seed=2))


def test_samples_with_and_without_images_do_not_share_batches() -> None:
    has_image = [index % 3 == 0 for index in range(333)]
    order = batches(LengthGroupedSampler(LENGTHS, 8, seed=1, has_image=has_image), 8)
    assert all(len({has_image[index] for index in batch}) == 1 for batch in order[: 111 // 8 + 222 // 8])
    assert sorted(index for batch in order for index in batch) == list(range(333))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        LengthGroupedSampler(LENGTHS, 0)
    with pytest.raises(ValueError, match="one each"):
        LengthGroupedSampler(LENGTHS, 8, has_image=[True])
