"""Loads, information and paths where the answer is known."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moe_llava.routing.findings import findings, layer_names, percent
from moe_llava.routing.paths import travelled
from moe_llava.routing.statistics import RouteStatistics, gather, quantile
from tests.routing.made import write_routes


def test_experts_of_one_modality_tell_all_of_it(tmp_path: Path) -> None:
    is_image = np.arange(40) % 2 == 0
    experts = np.zeros((40, 2, 1), dtype=int)
    experts[:, 0, 0] = np.where(is_image, 3, 1)  # a layer of specialists
    experts[:, 1, 0] = np.arange(40) // 2 % 4  # and one that does not care
    with write_routes(tmp_path / "routes.parquet", experts, is_image, num_experts=4) as file:
        statistics = gather(file)
    np.testing.assert_allclose(statistics.information(), [1.0, 0.0], atol=1e-12)
    assert statistics.modality_entropy() == pytest.approx(1.0)
    np.testing.assert_allclose(statistics.load(), [[0, 0.5, 0, 0.5], [0.25] * 4])
    assert statistics.image_share()[0][[1, 3]].tolist() == [0.0, 1.0]
    assert np.isnan(statistics.image_share()[0][[0, 2]]).all()
    np.testing.assert_allclose(statistics.image_share()[1], 0.5)
    np.testing.assert_allclose(statistics.max_violation(), [1.0, 0.0])
    assert statistics.dead() == [(0, 0), (0, 2)]
    assert statistics.mean_entropy(0).tolist() == pytest.approx([0.5 / math.log(4)] * 2)
    sentences = " ".join(findings(statistics, []))
    assert "2 of 8 experts were chosen by no token" in sentences
    assert "tells most of whether" in sentences


def test_preference_does_not_depend_on_how_many_tokens_a_modality_has(tmp_path: Path) -> None:
    is_image = np.arange(60) < 50
    experts = (np.arange(60) % 2).reshape(60, 1, 1)
    with write_routes(tmp_path / "routes.parquet", experts, is_image, num_experts=2) as file:
        np.testing.assert_allclose(gather(file).image_share(), 0.5)


def test_statistics_of_pieces_are_those_of_the_whole(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    experts = random.permuted(np.tile(np.arange(6), (500, 3, 1)), axis=-1)[:, :, :2]
    with write_routes(tmp_path / "routes.parquet", experts, random.random(500) < 0.6, num_experts=6) as file:
        whole = gather(file)
        pieces = RouteStatistics.empty(file.info)
        for routes in file.routes(size=7):
            pieces.update(routes)
    assert whole.summary() == pieces.summary()
    assert whole.chosen.sum() == 500 * 3 * 2
    np.testing.assert_array_equal(whole.transitions.sum(axis=(0, 2, 3)), [500, 500])
    np.testing.assert_array_equal(whole.transitions.sum(axis=(0, 3))[0], whole.first.sum(axis=0)[0])


def test_paths_are_counted_one_by_one(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    experts = random.permuted(np.tile(np.arange(5), (900, 3, 1)), axis=-1)[:, :, :2]
    is_image, sample = random.random(900) < 0.5, np.sort(random.integers(0, 20, 900))
    words = [f"w{number}" for number in random.integers(0, 9, 900)]
    path = tmp_path / "routes.parquet"
    with write_routes(path, experts, is_image, num_experts=5, sample=sample, texts=words) as file:
        for kind in range(2):
            for choices in (1, 2):
                known: Counter[tuple[tuple[int, ...], ...]] = Counter(
                    tuple(tuple(sorted(step[:choices].tolist())) for step in token)
                    for token in experts[is_image == bool(kind)]
                )
                table = travelled(file, kind, choices=choices)
                assert table.distinct == len(known)
                assert [best.tokens for best in table.paths] == [count for _, count in known.most_common(10)]
                assert all(known[best.experts] == best.tokens for best in table.paths)
                pieces = travelled(file, kind, choices=choices, most_paths=40)
                assert (pieces.distinct, [best.tokens for best in pieces.paths]) == (
                    table.distinct,
                    [best.tokens for best in table.paths],
                )
        best = travelled(file, 0).paths[0]
    took = ~is_image & (experts[:, :, 0] == np.array(best.experts)[:, 0]).all(axis=1)
    assert best.token_share == took.sum() / (~is_image).sum()
    assert best.sample_share == len(set(sample[took])) / len(set(sample[~is_image]))
    assert dict(best.texts).items() <= Counter(np.array(words)[took].tolist()).items()


def test_quantiles_of_a_histogram() -> None:
    counts = np.zeros(100, dtype=np.int64)
    counts[[10, 50, 90]] = [10, 80, 10]
    assert [float(quantile(counts, level)) for level in (0.05, 0.5, 0.95)] == pytest.approx([0.105, 0.505, 0.905])


def test_numbers_for_reading() -> None:
    assert percent(0.256) == "26\u00a0%"
    assert percent(0.0123) == "1.2\u00a0%"
    assert layer_names((0, 2, 4, 6, 8)) == "0, 2, … 8"
    assert layer_names((0, 1, 5)) == "0, 1, 5"
