"""Reading samples, and their scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_llava.routing.compare import compare, splits
from moe_llava.routing.score import Scorer, Scores, answer_log_probability, read_samples
from tests.routing.planted import planted_engine, planted_samples
from tests.tiny import Tiny, tiny_inputs, tiny_sparse


def test_questions_and_conversations_are_told_apart(tiny: Tiny) -> None:
    questions = read_samples(tiny.folder / "questions.jsonl")
    assert [one.kind for one in questions] == ["what colour"] * 4
    assert questions[0].messages[0]["content"] == "<image>\nWhat colour is it?"
    conversations = read_samples(tiny.folder / "train.json")
    assert len(conversations) == 32
    assert {one.modality for one in conversations} == {"with image", "text only"}
    assert conversations[0].accepted == ("It is red.",)


def test_a_limit_takes_evenly_and_rare_kinds_are_pooled(tmp_path: Path) -> None:
    rows = [{"id": n, "question": f"is it {n}?", "answer": "no"} for n in range(99)]
    rows.append({"id": "odd", "question": "why ever?", "answer": "so"})
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert {one.kind for one in read_samples(path)} == {"is it", "other"}
    assert [one.id for one in read_samples(path, limit=3)] == ["0", "50", "odd"]
    with pytest.raises(ValueError, match="at least 1"):
        read_samples(path, limit=0)
    with pytest.raises(ValueError, match="nowhere"):
        read_samples(tmp_path / "nowhere.jsonl")


def test_log_probability_is_the_loss_of_each_row() -> None:
    model, inputs = tiny_sparse().eval(), tiny_inputs()
    with torch.no_grad():
        loss = model(**inputs).language_loss
        given = {name: tensor for name, tensor in inputs.items() if name != "pixel_values"}
        given["image_features"] = model.model.get_patch_features(inputs["pixel_values"])
        rows = answer_log_probability(model, given)
    supervised = int((inputs["labels"][:, 1:] != -100).sum())
    assert torch.allclose(-rows.sum() / supervised, loss.double(), atol=1e-6)


def test_scores_come_in_the_order_of_the_samples(tmp_path: Path) -> None:
    samples = planted_samples(tmp_path)
    scores = Scorer(planted_engine(specialists=False), samples, batch_size=7).score()
    assert scores.right is not None
    assert scores.right.tolist() == [float(one.kind != "right") for one in samples]
    assert (scores.log_probability[scores.right == 0] < -5).all()


def test_splits_and_differences(tmp_path: Path) -> None:
    samples = planted_samples(tmp_path)
    names = splits(samples)
    assert set(names) == {"all", "with image", "text only", "left", "right", "plain"}
    before = Scores(np.zeros(88), np.ones(88))
    after = Scores(np.where(names["right"], -1.0, 0.0), np.where(names["right"], 0.0, 1.0))
    found = compare(before, after, samples)
    assert found["right"].log_probability.mean == -1.0
    assert found["plain"].all_zero
    assert found["all"].log_probability.excludes_zero
