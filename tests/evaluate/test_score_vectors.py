"""Our figures are those that the official scorers printed for the same real predictions."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_llava.evaluate.scores import score
from moe_llava.evaluate.scores.normalize import normalize_evalai, normalize_vqa
from moe_llava.evaluate.scores.option_letter import infer_option
from moe_llava.evaluate.scores.pope import binary_scores, says_yes
from moe_llava.evaluate.scores.scienceqa import chosen_index
from moe_llava.evaluate.scores.vqa_accuracy import m4c_accuracy, vqa_eval_accuracy

EXACT = 1e-12  # relative; leaves room for the order of summation only


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def recorded(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_both_normalizers_agree_on_every_recorded_string(vectors: Path) -> None:
    rows = lines(vectors / "answer_normalization/strings.jsonl")
    assert len(rows) == 7964
    assert [row["raw"] for row in rows if normalize_vqa(row["raw"]) != row["vqaeval"]] == []
    assert [row["raw"] for row in rows if normalize_evalai(row["raw"]) != row["m4c"]] == []


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        ("results.json", "expected_vqaeval.json"),
        ("results_after_llava_conversion.json", "expected_vqaeval_after_llava_conversion.json"),
    ],
)
def test_vqav2(vectors: Path, predictions: str, expected: str) -> None:
    official = recorded(vectors / "vqav2" / expected)["accuracy"]
    report = score("vqav2", vectors / "vqav2/predictions" / predictions, vectors / "vqav2/data")
    figures = dict(report.figures)
    if predictions == "results.json":
        m4c = recorded(vectors / "vqav2/expected_m4c.json")
        assert figures["m4c_accuracy"] == round(sum(m4c.values()) / len(m4c), 2) == 62.41
    del figures["m4c_accuracy"]
    assert figures == {
        "accuracy": official["overall"],
        "per_answer_type": official["perAnswerType"],
        "per_question_type": official["perQuestionType"],
    }
    assert report.n == 266


def test_vqav2_answer_file_is_converted_as_the_original_does(vectors: Path, write: Callable[..., Path]) -> None:
    results = recorded(vectors / "vqav2/predictions/results.json")
    answers = write("a.jsonl", [{"question_id": row["question_id"], "text": row["answer"]} for row in results])
    assert score("vqav2", answers, vectors / "vqav2/data").figures["accuracy"] == 59.77


@pytest.mark.parametrize(
    ("rule", "predictions", "expected"),
    [
        (vqa_eval_accuracy, "results.json", "expected_vqaeval.json"),
        (vqa_eval_accuracy, "results_after_llava_conversion.json", "expected_vqaeval_after_llava_conversion.json"),
        (m4c_accuracy, "results.json", "expected_m4c.json"),
    ],
)
def test_vqa_accuracy_question_by_question(
    vectors: Path, rule: Callable[..., float], predictions: str, expected: str
) -> None:
    annotations = recorded(vectors / "vqav2/data/v2_mscoco_val2014_annotations.json")["annotations"]
    people = {row["question_id"]: [human["answer"] for human in row["answers"]] for row in annotations}
    official = recorded(vectors / "vqav2" / expected)
    results = recorded(vectors / "vqav2/predictions" / predictions)
    ours = {str(row["question_id"]): round(100 * rule(row["answer"], people[row["question_id"]]), 2) for row in results}
    assert ours == official.get("evalQA", official)


def test_textvqa(vectors: Path) -> None:
    official = recorded(vectors / "textvqa/expected.json")
    report = score("textvqa", vectors / "textvqa/predictions/llava15_13b.jsonl", vectors / "textvqa/data")
    assert report.figures["accuracy"] / 100 == pytest.approx(official["accuracy_llava15_13b"], rel=EXACT)
    assert report.n == official["n"]
    for row in lines(vectors / "textvqa/per_question.jsonl"):
        assert m4c_accuracy(row["pred_llava15_13b"], row["answers"]) == pytest.approx(row["official_score_llava15_13b"])
        assert m4c_accuracy(row["pred_other_7b"], row["answers"]) == pytest.approx(row["published_score_other_7b"])


def test_pope(vectors: Path) -> None:
    official = recorded(vectors / "pope/expected.json")
    report = score("pope", vectors / "pope/predictions/llava15_13b.jsonl", vectors / "pope/data")
    assert {name: report.figures[name] for name in official["llava15_13b"]} == official["llava15_13b"]
    assert report.figures["f1"] / 100 == pytest.approx(official["llava15_13b_mean_f1"], rel=EXACT)


def test_pope_reads_free_answers(vectors: Path) -> None:
    rows = lines(vectors / "pope/free_form_answers.jsonl")
    official = recorded(vectors / "pope/expected.json")["long_answers_lavin"]
    assert binary_scores((says_yes(row["text"]), row["label"] == "yes") for row in rows) == official


@pytest.mark.parametrize(
    ("model", "predictions"),
    [
        ("LaVIN", "converted/LaVIN"),
        ("llava15_13b", "converted/llava15_13b"),
        ("llava15_13b", "predictions/llava15_13b.jsonl"),
    ],
)
def test_mme(vectors: Path, model: str, predictions: str) -> None:
    official = recorded(vectors / "mme/expected.json")[model]
    report = score("mme", vectors / "mme" / predictions, vectors / "mme/data")
    assert report.figures["sub"] == pytest.approx(official["sub"], rel=EXACT)
    assert report.figures["perception"] == pytest.approx(official["perception"], rel=EXACT)
    assert report.figures["cognition"] == pytest.approx(official["cognition"], rel=EXACT)
    assert report.n == 2374


def test_scienceqa(vectors: Path) -> None:
    official = recorded(vectors / "scienceqa/expected.json")["llava15_13b"]
    report = score("scienceqa", vectors / "scienceqa/predictions/llava15_13b.jsonl", vectors / "scienceqa/data")
    assert science_figures(report.figures) == official


@pytest.mark.parametrize("model", ["test_sqa_llava_13b_v0", "test_sqa_llava_lcs_558k_sqa_12e_vicuna_v1_3_13b"])
def test_scienceqa_long_answers(vectors: Path, write: Callable[..., Path], tmp_path: Path, model: str) -> None:
    official = dict(recorded(vectors / "scienceqa/expected.json")["long_600"][model])
    chosen = official.pop("pred_idx")
    predictions = vectors / f"scienceqa/predictions/long_{model}.600.jsonl"
    problems = recorded(vectors / "scienceqa/data/problems.json")
    write("problems.json", problems)
    write("pid_splits.json", {"test": list(chosen)})
    assert science_figures(score("scienceqa", predictions, tmp_path).figures) == official
    texts = {row["question_id"]: row["text"] for row in lines(predictions)}
    assert {key: chosen_index(text, len(problems[key]["choices"])) for key, text in texts.items()} == chosen


def science_figures(figures: dict[str, Any]) -> dict[str, Any]:
    names = {"accuracy": "accuracy_pct", "correct": "correct", "total": "total"}
    return {
        f"{prefix}{names[key]}": figures[f"{ours}{key}"]
        for key in names
        for prefix, ours in (("", ""), ("img_", "image_"))
    }


def test_mmbench(vectors: Path) -> None:
    official = recorded(vectors / "mmbench/expected.json")
    report = score("mmbench", vectors / "mmbench/predictions/llava15_13b.jsonl", vectors / "mmbench/data")
    names = {"circular": "circular", "vanilla": "vanilla_base_rows_only", "all_rotations": "vanilla_all_rotations"}
    for row, (ours, theirs) in zip(report.table[1:], names.items(), strict=True):
        assert report.figures[ours] / 100 == pytest.approx(official[theirs]["acc"], rel=EXACT)
        assert row[:3] == [ours, str(official[theirs]["n"]), str(official[theirs]["hit"])]


def test_mmbench_option_of_free_answers(vectors: Path) -> None:
    for row in lines(vectors / "mmbench/can_infer.jsonl"):
        assert infer_option(row["answer"], row["choices"]) == (row["inferred"] or None), row["answer"]


@pytest.mark.parametrize("model", ["13b", "7b"])
@pytest.mark.parametrize("runs", [1, 3])
def test_mmvet(vectors: Path, model: str, runs: int) -> None:
    figures = score(
        "mmvet", vectors / f"mmvet/grades/llava15_{model}_grade_{runs}runs.json", vectors / "mmvet/data"
    ).figures
    for split, kind in (("capabilities", "cap"), ("integrations", "cap-int")):
        with (vectors / f"mmvet/expected_llava15_{model}_{kind}_{runs}runs.csv").open(newline="") as file:
            [row] = csv.DictReader(file)
        del row[""]
        assert json.loads(row.pop("runs")) == figures["runs"]
        official = {"_".join(sorted(name.split("_"))): float(value) for name, value in row.items()}
        assert official == {"total": figures["total"], "std": figures["std"], **figures[split]}


def test_llava_bench(vectors: Path) -> None:
    for name, official in recorded(vectors / "llava_bench/expected.json")["files"].items():
        report = score("llava_bench", vectors / "llava_bench/reviews" / name, vectors / "llava_bench")
        ours = report.figures["runs"][name]
        assert {group: [of["relative"], of["reference"], of["model"]] for group, of in ours.items()} == official


@pytest.mark.parametrize("model", ["13b", "7b"])
def test_llava_bench_mean_of_runs(vectors: Path, tmp_path: Path, model: str) -> None:
    for run in (1, 2, 3):
        shutil.copy(vectors / f"llava_bench/reviews/llava-v1.5-{model}-eval{run}.jsonl", tmp_path)
    official = recorded(vectors / "llava_bench/expected.json")["mean_of_3"][model]
    report = score("llava_bench", tmp_path, vectors / "llava_bench")
    assert report.figures["relative"] == pytest.approx(official, rel=EXACT)
    assert report.n == 180
