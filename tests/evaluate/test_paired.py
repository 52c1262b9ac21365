"""Intervals of paired differences."""

import numpy as np
import pytest

from moe_llava.evaluate.paired import paired_bootstrap


def test_nothing_but_zeros_is_exactly_zero() -> None:
    interval = paired_bootstrap([0.0] * 50)
    assert (interval.mean, interval.low, interval.high, interval.all_zero) == (0.0, 0.0, 0.0, True)
    assert not interval.excludes_zero


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(size=100)
    assert paired_bootstrap(values, seed=3) == paired_bootstrap(values, seed=3)
    assert paired_bootstrap(values, seed=3) != paired_bootstrap(values, seed=4)


def test_it_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        interval = paired_bootstrap(generator.normal(0.3, 1.0, size=80), seed=trial, resamples=600, confidence=0.9)
        covered += interval.low <= 0.3 <= interval.high
    assert 165 <= covered <= 195  # 180 expected, within about three standard errors


def test_answers_about_one_image_count_once() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=30), 20)
    alone = paired_bootstrap(values)
    together = paired_bootstrap(values, groups=[number // 20 for number in range(600)])
    assert together.groups == 30
    assert together.mean == alone.mean
    assert together.high - together.low > 3 * (alone.high - alone.low)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_what_cannot_be_compared_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        paired_bootstrap(values)
