"""The small real model's report: fair baselines, right counts, and a page that says what was measured."""

import math
from pathlib import Path

import pytest
import torch
from benchmarks.smol import baselines, language
from benchmarks.smol.page import MEAN_PROBE, page
from benchmarks.smol.report import Answered, _said, f1, table
from torch.nn import functional as F

from moe_llava.evaluate.questions import Question
from moe_llava.generate.engine import Engine
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_model
from tests.tiny import Tiny


def clouds(noise: float) -> tuple[torch.Tensor, list[str]]:
    """Three named points in eight dimensions, each drawn in four styles."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 8, generator=generator)
    features = centres.repeat_interleave(4, dim=0) + noise * torch.randn(12, 8, generator=generator)
    return features, [name for name in ("fox", "cat", "owl") for _ in range(4)]


def question(kind: str, asked: str, *accepted: str, image: str = "1F98A.png") -> Question:
    return Question(f"{image}/{kind}", asked, accepted, Path(image), kind)


def test_both_baselines_name_what_lies_near() -> None:
    known, labels = clouds(0.1)
    asked = known + 0.01
    assert baselines.nearest(known, labels, asked) == labels
    assert baselines.linear_probe(known, labels, asked, penalty=1e-3) == labels


def test_the_penalty_is_chosen_on_a_style_left_out() -> None:
    known, labels = clouds(0.1)
    assert baselines.choose_penalty(known, labels, ["a", "b", "c", "d"] * 3) in baselines.PENALTIES


def test_f1_is_of_yes() -> None:
    asked = [question("yes_no", "Is this a fox?", answer) for answer in ("Yes.", "Yes.", "No.", "No.")]
    assert f1(asked, ["yes", "No.", "Yes.", "no"]) == pytest.approx(0.5)
    assert f1(asked, ["No."] * 4) == 0.0


def test_a_baseline_says_yes_to_the_name_it_gives() -> None:
    said = {"name": {Path("1F98A.png"): "A fox"}, "category": {Path("1F98A.png"): "an animal"}}
    assert _said(question("yes_no", "Is this a fox?", "Yes."), said) == "yes"
    assert _said(question("yes_no", "Is this a cat?", "No."), said) == "no"
    assert _said(question("name", "What is this?", "a fox"), said) == "A fox"
    assert _said(question("colour", "What color is it?", "Red."), said) == ""


def answered() -> Answered:
    questions = [question("name", "What is this?", "a fox", "fox", image=f"{number}.png") for number in range(20)]
    half = ["A fox."] * 10 + ["A cat."] * 10
    known = dict.fromkeys(("nearest neighbour", "linear probe", MEAN_PROBE), half)
    return Answered(questions, {"model": ["a fox"] * 20, **known})


def test_a_lead_is_paired_and_has_an_interval() -> None:
    row = table(answered(), "name")
    assert row["model"]["mean"] == 1.0 and row["linear probe"]["mean"] == 0.5
    lead = row["lead over linear probe"]
    assert lead["mean"] == 0.5 and 0 < lead["low"] < 0.5 < lead["high"] < 1


def test_the_page_says_what_was_measured() -> None:
    said = {"questions": ["Why?"], "before": ["So | so."], "after": ["Thus."]}
    named = table(answered(), "name")
    half = dict.fromkeys(("model", "nearest neighbour", "linear probe"), 0.5)
    report = {
        "sets": {
            "unseen_style": {"name": named, "yes_no": {**named, "f1": half}},
            "unseen_concept": {"name": named},
        },
        "language": {"perplexity": {"before": 20.0, "after": 21.0}, **said},
        "gallery": [],
    }
    text = page(report)
    assert "it names 100.0 (100.0 to 100.0) %: better than its nearest neighbour, better than a linear probe." in text
    assert (
        "A probe of the mean alone, as is usual, names 50.0 (" in text
        and "the model is better than it, by +50.0" in text
    )
    assert "| an unseen drawing style, yes no, F1 | 20 | 0.500 | 0.500 | 0.500 | | |" in text
    assert "| an unseen drawing style, name | 20 | 100.0 (100.0 to 100.0) | 50.0" in text
    assert "20.00 before, 21.00 after (+5.0 %)" in text
    assert "| Why? | So / so. | Thus. |" in text


def test_perplexity_is_that_of_whole_pieces(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "_LENGTH", 8)
    engine = Engine(*build_model(load_recipe(tiny.recipe)))
    text = "what color is the square? " * 10
    ids = engine.processor.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
    pieces = ids[: len(ids) // 8 * 8].reshape(-1, 8)
    with torch.no_grad():
        logits = engine.model(input_ids=pieces).logits[:, :-1]
    expected = math.exp(F.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten()).item())
    assert language.perplexity(engine, text) == pytest.approx(expected, rel=1e-5)
