"""The study: its arms are recipes, its own variants do what they say, its verdicts follow from intervals alone."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import intervals, report, smol
from studies.arms import RESULTS, Comparison, read_arms, runs
from studies.variants import keep_places, limit_capacity, scale_router, widen

from moe_llava.evaluate.questions import Question
from tests.tiny import tiny_dense, tiny_inputs, tiny_sparse


def test_every_arm_is_a_recipe_that_trains_what_it_names() -> None:
    arms, parts = read_arms()
    for arm in arms.values():
        recipe = arm.recipe(seed=2)
        assert recipe.seed == 2 and recipe.output.endswith("seed-2")
        stage = recipe.stages[arm.name]
        assert ("experts" in stage.train) == (stage.sparsify is not None)
    assert {letter.letter for letter in parts} == set("abcdefghij")
    assert {one.arm for part in parts for one in part.comparisons} <= set(arms)


def test_seeds_are_paired_and_five_where_promised() -> None:
    arms, parts = read_arms()
    assert len(runs(arms)) == sum(arm.seeds for arm in arms.values())
    for part in parts:
        least = min(arms[name].seeds for name in part.arms())
        assert least >= (5 if part.letter in "abcf" else 3)


def test_results_in_the_repository_belong_to_arms() -> None:
    arms, _ = read_arms()
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert path.name == f"{result['arm']}-{result['seed']}.json"
        assert result["seed"] < arms[result["arm"]].seeds


def test_sparse_and_dense_are_compared_question_by_question() -> None:
    kinds = ["name", "name", "colour"]
    questions = [
        Question(thing, "What?", ("a fox",), Path(f"{thing}.png"), kind)
        for thing, kind in zip("abc", kinds, strict=True)
    ]
    dense, sparse = ["A fox.", "an owl", "an owl"], ["a fox", "a fox", "an owl"]
    row = smol.compare(questions, dense, sparse, "name")
    assert (row["n"], row["dense"], row["sparse"], row["difference"]["mean"]) == (2, 0.5, 1.0, 0.5)
    assert smol.compare(questions, dense, sparse, smol.ALL)["n"] == 3
    assert smol.compare(questions, dense, dense, "colour")["difference"]["high"] == 0


def test_a_changed_arm_has_another_fingerprint() -> None:
    arms, _ = read_arms()
    assert len({arm.fingerprint() for arm in arms.values()}) == len(arms)


def test_an_expert_takes_first_choices_before_second_ones_by_position() -> None:
    choices = torch.tensor([[0, 1], [0, 1], [1, 0], [0, 1]])
    kept = keep_places(choices, num_experts=2, capacity=2)
    # Expert 0: first choices of tokens 0 and 1 fill it. Expert 1: token 2 first, then token 0.
    assert kept.tolist() == [[True, True], [True, False], [True, False], [False, False]]


def test_nothing_is_dropped_with_room_for_all_nor_outside_training() -> None:
    model = tiny_sparse(num_experts=4, top_k=2)
    expected = model(**tiny_inputs()).logits
    facts = limit_capacity(model, factor=0.5)
    assert torch.equal(model.eval()(**tiny_inputs()).logits, expected)
    assert facts() == {"dropped": 0.0}
    model.train()(**tiny_inputs())
    assert 0.4 < facts()["dropped"] < 1


def test_a_wider_dense_model_computes_the_same() -> None:
    model = tiny_dense()
    expected, width = model(**tiny_inputs()).logits, model.config.text_config.intermediate_size
    torch.manual_seed(0)
    widen(model, times=2)
    torch.testing.assert_close(model(**tiny_inputs()).logits, expected, atol=1e-5, rtol=0)
    widths = [layer.mlp.up_proj.out_features for layer in model.model.language_model.layers]
    assert widths == [2 * width, width, 2 * width]


def test_smaller_routers_give_more_even_probabilities() -> None:
    model = tiny_sparse()
    before = model.model.language_model.layers[0].mlp.gate.weight.clone()
    scale_router(model, factor=0.1)
    torch.testing.assert_close(model.model.language_model.layers[0].mlp.gate.weight, before * 0.1)


def test_an_interval_is_students_t_over_seeds() -> None:
    found = intervals.paired([3.0, 4.0, 5.0], [1.0, 1.0, 1.0])
    assert found.mean == 3.0 and found.seeds == 3
    assert found.high - found.mean == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert intervals.paired([1.0], [0.0]).high == math.inf


@pytest.mark.parametrize(
    ("low", "high", "paper", "expected"),
    [
        (0.2, 3.0, 1.0, "same direction: better"),
        (-3.0, -0.2, 1.0, "different: worse"),
        (-0.3, 0.4, 1.0, "different: less than half a point here"),
        (-2.0, 2.0, 1.0, "not decidable here"),
        (-0.4, 0.4, 0.1, "same: less than half a point here too"),
        (0.6, 2.0, 0.1, "different: better"),
        (0.1, 0.4, None, "better, by less than half a point; the paper has no such figure"),
    ],
)
def test_verdicts_follow_from_the_interval(low: float, high: float, paper: float | None, expected: str) -> None:
    difference = intervals.Difference((low + high) / 2, low, high, 5)
    assert intervals.verdict(difference, Comparison("one", "other", paper)) == expected


SCORES = {kind: {"accuracy": 0.5, "loss": 1.0, "n": 10} for kind in ("all", "easy_vqa", "emoji")}
RESULT: dict[str, Any] = {
    "scores": SCORES,
    "steps": 10,
    "train_flops": 1e12,
    "parameters": 10,
    "activated_parameters": 5,
    "training": {},
    "experts": {"cosine": 0.9, "cka": 0.8, "spread": 0.1},
    "seconds": {"all": 1.0, "training_cpu": 1.0},
    "environment": {"packages": {"torch": "2", "transformers": "5"}},
}
BETTER = {**RESULT, "scores": {**SCORES, "all": {"accuracy": 0.6, "loss": 0.9, "n": 10}}}


def test_the_page_names_what_is_missing() -> None:
    arms, parts = read_arms()
    results: report.Results = {name: {} for name in arms}
    results["sparse"], results["dense"] = dict.fromkeys(range(3), BETTER), dict.fromkeys(range(3), RESULT)
    text = report.page(results, arms, parts)
    assert "6 of 116 runs are in" in text and "at once (0, 1, 2, 3, 4)" in text
    assert "| sparse minus dense | +10.00 (+10.00 to +10.00) | -0.100" in text
    assert "**same direction: better** (3 of 5 seeds)" in text
    assert "In short" not in text


def test_a_full_page_says_it_in_short() -> None:
    arms, parts = read_arms()
    results = {name: dict.fromkeys(range(arm.seeds), RESULT) for name, arm in arms.items()}
    results["experts_8"] = dict.fromkeys(range(3), BETTER)
    text = report.page(results, arms, parts)
    assert "17 differences the largest is +10.00 (+10.00 to +10.00), experts 8 minus sparse" in text
    assert "Missing runs" not in text


def test_two_seeds_say_nothing() -> None:
    assert (
        intervals.verdict(intervals.Difference(3.0, 2.9, 3.1, 2), Comparison("one", "other", 1.0))
        == "too few seeds yet"
    )
