"""The audit where the answer is known."""

import pytest
import torch

from moe_llava.routing.audit import EFFECT, NONE, Audit, answer, audit
from moe_llava.routing.nulls import NULLS, keep_largest
from moe_llava.routing.score import Sample
from tests.routing.planted import planted_dense, planted_engine, planted_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return planted_samples(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def concentrated(samples: list[Sample]) -> Audit:
    return audit(planted_engine(), samples, planted_dense())


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_a_freshly_upcycled_model_shows_exactly_nothing(samples: list[Sample], top_k: int) -> None:
    result = audit(planted_engine(specialists=False, top_k=top_k), samples, planted_dense())
    assert [test.name for test in result.tests] == ["dense", *NULLS]
    for test in result.tests:
        if test.name == "runner_up" and top_k == 4:
            assert test.verdict == "not possible"
            continue
        assert test.verdict == NONE, test
        assert all(one.log_probability.mean == 0.0 and one.all_zero for one in test.differences.values())
    assert all(one.identical and one.spread == 0.0 for one in result.similarity.values())
    assert answer(result).startswith("No.")


def test_a_mixture_of_different_but_random_experts_is_not_called_identical(samples: list[Sample]) -> None:
    engine = planted_engine(specialists=False)
    experts = engine.model.model.language_model.layers[0].mlp.experts
    with torch.no_grad():
        experts.down_proj[2, 0, 0] += 1e-3
    assert not audit(engine, samples[:2]).similarity[0].identical


def test_planted_specialists_answer_everything(concentrated: Audit) -> None:
    assert concentrated.accuracy == 1.0


def test_specialists_are_seen_by_every_test_that_should_see_them(concentrated: Audit) -> None:
    for name in ("dense", "mean", "random", "uniform", "runner_up"):
        assert concentrated[name].verdict == EFFECT, name
    assert answer(concentrated).startswith("Yes")
    assert answer(concentrated).endswith("It does better than its dense twin.")


def test_and_by_none_that_should_not(concentrated: Audit) -> None:
    # What makes these experts differ is fewer than 1 % of their numbers, which the cuts leave.
    assert concentrated["cut_90"].verdict == NONE
    assert concentrated["cut_99"].verdict == NONE
    # Plain questions, all of those without a picture, do not pass through the experts.
    for test in concentrated.tests:
        assert test.differences["plain"].all_zero
        assert test.differences["text only"].all_zero
    # The dense twin is expert 0: as good on the left, always wrong on the right.
    assert concentrated["dense"].differences["left"].accuracy.mean == 0.0  # type: ignore[union-attr]
    assert concentrated["dense"].differences["right"].accuracy.mean == -1.0  # type: ignore[union-attr]


def test_differences_spread_over_all_numbers_do_not_survive_the_cuts(samples: list[Sample]) -> None:
    result = audit(planted_engine(spread=True), samples)
    assert result.accuracy == 1.0
    for name in ("mean", "random", "uniform", "runner_up"):
        assert result[name].verdict == EFFECT, name
    # A tenth of the differences still points the right way, if less surely.
    assert result["cut_90"].flagged
    assert result["cut_99"].verdict == EFFECT


def test_the_model_is_as_before(samples: list[Sample]) -> None:
    engine = planted_engine(spread=True)
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    kernel = engine.model.model.language_model.config._experts_implementation
    audit(engine, samples[:4])
    after = engine.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert engine.model.model.language_model.config._experts_implementation == kernel
    assert not engine.model.model.language_model.layers[0].mlp.gate._forward_hooks


def test_few_answers_are_called_few(samples: list[Sample]) -> None:
    result = audit(planted_engine(), samples[:6])
    assert result["mean"].verdict == "too few answers"
    assert answer(result) == "There are too few answers to tell."


def test_wrong_models_are_refused(samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="dense"):
        audit(planted_dense(), samples)
    with pytest.raises(ValueError, match="sparse model"):
        audit(planted_engine(), samples, planted_engine())


def test_keep_largest() -> None:
    stacked = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 5.0, 12.0]])
    expected = torch.tensor([[1.0, 2.0, 4.0, 4.0], [1.0, 2.0, 4.0, 12.0]])
    assert torch.equal(keep_largest(stacked, 0.25), expected)
    assert torch.equal(keep_largest(stacked, 1.0), stacked)
