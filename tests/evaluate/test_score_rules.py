"""The scoring rules where a difference would go unnoticed, on invented answers."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_llava.evaluate import scores
from moe_llava.evaluate.scores import SCORERS, score
from moe_llava.evaluate.scores.mme import read_yes_no
from moe_llava.evaluate.scores.normalize import CONTRACTIONS, normalize_evalai, normalize_vqa
from moe_llava.evaluate.scores.option_letter import infer_option
from moe_llava.evaluate.scores.pope import binary_scores, says_yes
from moe_llava.evaluate.scores.scienceqa import chosen_index
from moe_llava.evaluate.scores.textvqa import question_of
from moe_llava.evaluate.scores.vqa_accuracy import agreement, m4c_accuracy, vqa_eval_accuracy

Write = Callable[..., Path]
Tiny = Callable[[str], tuple[Path, list[dict[str, Any]]]]

FLAWLESS = {
    "vqav2": {"accuracy": 100.0},
    "gqa": {"accuracy": 100.0, "binary": 100.0, "open": 100.0, "distribution": 0.0},
    "vizwiz": {"accuracy": 100.0},
    "scienceqa": {"accuracy": 100.0, "image_accuracy": 100.0},
    "textvqa": {"accuracy": 100.0},
    "pope": {"f1": 100.0},
    "mme": {"perception": 2000.0, "cognition": 800.0},
    "mmbench": {"circular": 100.0, "vanilla": 100.0, "all_rotations": 100.0},
    "mmbench_cn": {"circular": 100.0, "vanilla": 100.0, "all_rotations": 100.0},
    "seed": {"accuracy": 100.0, "image": 100.0, "video": 100.0},
    "llava_bench": {"relative": 100.0},
    "easy_vqa": {"accuracy": 100.0},
    "emoji_pope": {"f1": 100.0},
}


@pytest.mark.parametrize("name", FLAWLESS)
def test_flawless_answers_score_full_marks_in_any_order(stand_in: Tiny, write: Write, name: str) -> None:
    data, rows = stand_in(name)
    report = score(name, write("answers.jsonl", rows[::-1]), data)
    assert FLAWLESS[name].items() <= report.figures.items()
    assert report.n == len(rows)
    assert all(len(row) == len(report.table[0]) and all(isinstance(cell, str) for cell in row) for row in report.table)


def test_a_report_prints_as_aligned_columns(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("scienceqa")
    assert score("scienceqa", write("answers.jsonl", rows), data).text() == (
        "questions   n  correct  accuracy\nall         3        3    100.00\nwith image  2        2    100.00"
    )


def test_every_benchmark_has_a_scorer() -> None:
    assert set(SCORERS) == {*FLAWLESS, "mmvet"}


def test_the_rules_need_nothing_but_the_standard_library() -> None:
    files = list(Path(scores.__file__).parent.glob("*.py"))
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    others = [name for name in names if not name.startswith("moe_llava.evaluate.scores")]
    assert len(files) > 15 and others and {name.split(".")[0] for name in others} <= sys.stdlib_module_names


def test_mmvet_grades(stand_in: Tiny, write: Write) -> None:
    data, _ = stand_in("mmvet")
    grades = write("grades.json", {"v1_0": {"score": [0.5, 1.0]}, "v1_1": {"score": [0.0, 0.5]}})
    assert score("mmvet", grades, data).figures == {
        "total": 50.0,
        "std": 25.0,
        "runs": [25.0, 75.0],
        "capabilities": {"math": 75.0, "ocr": 75.0, "rec": 25.0},
        "integrations": {"math_ocr": 75.0, "rec": 25.0},
    }


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_agreement_leaves_each_person_out_in_turn(matches: int, accuracy: float) -> None:
    assert agreement("yes", ["yes"] * matches + ["no"] * (10 - matches)) == pytest.approx(accuracy)


def test_unanimous_answers_are_not_normalised_by_vqa_eval() -> None:
    assert vqa_eval_accuracy("Off", ["off"] * 10) == 0.0
    assert vqa_eval_accuracy("Off", ["off"] * 9 + ["on"]) == 1.0
    assert m4c_accuracy("Off", ["off"] * 10) == 1.0


@pytest.mark.parametrize(
    ("text", "vqa", "evalai"),
    [
        ("The two dogs.", "2 dogs", "2 dogs"),
        ("dont know", "don't know", "don't know"),
        ("hershey's", "hershey's", "hershey 's"),
        ("1,000", "1000", "1000"),
        ("a,b", "b", "ab"),
        ("5. and .5", "5 and .5", "5 and .5"),
        ("x-ray", "x ray", "x ray"),
        ("x - ray", "x ray", "x ray"),
        ("." * 33, ".", "."),
    ],
)
def test_normalizers(text: str, vqa: str, evalai: str) -> None:
    assert normalize_vqa(text) == vqa
    assert normalize_evalai(text) == evalai


def test_contractions() -> None:
    assert CONTRACTIONS["couldnt've"] == CONTRACTIONS["couldn'tve"] == "couldn't've"
    assert CONTRACTIONS["somebody'd"] == "somebodyd"
    assert len(CONTRACTIONS) == 114  # of the official 120, less six that never change a word


@pytest.mark.parametrize(
    ("text", "yes"),
    [("No", False), ("no, there is", False), ("Yes. No dog", True), ("NO", True), ("no\n", True), ("", True)],
)
def test_pope_reading(text: str, yes: bool) -> None:
    assert says_yes(text) is yes


def test_pope_scores_without_any_yes() -> None:
    scores = binary_scores([(False, True), (False, False)])
    assert (scores["precision"], scores["recall"], scores["f1"], scores["accuracy"]) == (0.0, 0.0, 0.0, 0.5)


@pytest.mark.parametrize(("text", "read"), [("Yes.", "yes"), ("is no", "other"), ("a no", "no"), ("No, yes", "no")])
def test_mme_reading(text: str, read: str) -> None:
    assert read_yes_no(text) == read


def test_mme_second_question_of_an_image_counts_twice(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("mme")
    rows[0]["text"] = "maybe"
    assert score("mme", write("answers.jsonl", rows), data).figures["sub"]["existence"] == 50.0


def test_mme_reads_the_image_folders_where_the_tool_is_absent(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("mme")
    for template in (data / "eval_tool/Your_Results").iterdir():
        columns = [line.split("\t") for line in template.read_text(encoding="utf-8").splitlines()]
        questions = data / "MME_Benchmark_release_version" / template.stem / "questions_answers_YN"
        questions.mkdir(parents=True)
        (questions / "1.txt").write_text("".join(f"{text}\t{truth}\n" for _, text, truth in columns), encoding="utf-8")
    (data / "eval_tool").rename(data / "elsewhere")
    assert score("mme", write("answers.jsonl", rows), data).figures["perception"] == 2000.0


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        ("B. because", 1),
        ("B.", -1),
        ("", -1),
        ("AB", -1),
        ("So. The answer is A. Done", 0),
        ("The answer is A. The answer is B.", -1),
        ("D", -1),
    ],
)
def test_scienceqa_reading(text: str, index: int) -> None:
    assert chosen_index(text, num_choices=3) == index


def test_textvqa_question_of_each_prompt_form() -> None:
    assert question_of("What IS it?\nReference OCR token: a, b\nAnswer") == "what is it?"
    assert question_of("Reference OCR token: a, b\nWhat IS it?\nAnswer") == "what is it?"
    assert question_of("What IS it?\nAnswer") == "what is it?"
    assert question_of("OCR tokens: a. Question: What IS it? Short answer:") == "what is it?"
    with pytest.raises(ValueError, match="no question found"):
        question_of("What is it?")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(B)", "B"),
        ("A or B", None),
        ("A thing is here on the left", None),
        ("Long ago and far away, they say: the answer is B because of A and so on and on", "B"),
        ("It is the CAT", "B"),
        ("cat and dog", None),
        ("Z", "Z"),
        ("Cannot determine the answer", "Z"),
    ],
)
def test_mmbench_option_of_an_answer(answer: str, letter: str | None) -> None:
    assert (
        infer_option(answer, {"A": "dog", "B": "cat", "C": "a very long option text to allow long answers"}) == letter
    )


def test_mmbench_one_wrong_rotation_spoils_the_question(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("mmbench")
    rows[1]["text"] = "A"
    figures = score("mmbench", write("answers.jsonl", rows), data).figures
    assert figures == {"circular": 50.0, "vanilla": 100.0, "all_rotations": 75.0}


def test_gqa_splits(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("gqa")
    rows[1]["text"] = "no"
    assert score("gqa", write("answers.jsonl", rows), data).figures == {
        "accuracy": 50.0,
        "open": 100.0,
        "binary": 0.0,
        "distribution": 0.01,
        "structural": {"query": 100.0, "verify": 0.0},
        "semantic": {"attr": 50.0},
        "words": {"3": 50.0},
        "steps": {"1": 50.0},
    }


def test_gqa_scores_a_converted_file_as_it_stands(stand_in: Tiny, write: Write) -> None:
    data, _ = stand_in("gqa")
    rows = [{"questionId": "q0", "prediction": "Red"}, {"questionId": "q1", "prediction": "yes"}]
    assert score("gqa", write("converted.json", rows), data).figures["accuracy"] == 50.0


def test_vizwiz_takes_what_people_said_as_it_stands(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("vizwiz")
    results = [{"image": row["question_id"], "answer": f"the {row['text']}"} for row in rows]
    assert score("vizwiz", write("results.json", results), data).figures["accuracy"] == 100.0
    people = [{"image": row["question_id"], "answers": [{"answer": "Red"}] * 10, "answer_type": "x"} for row in rows]
    write("vizwiz/val.json", people)
    assert score("vizwiz", write("results.json", results), data).figures["accuracy"] == 0.0


def test_vizwiz_ids_of_the_question_file(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("vizwiz")
    write("vizwiz/llava_val.jsonl", [{"question_id": n, "image": row["question_id"]} for n, row in enumerate(rows)])
    answers = [{"question_id": n, "text": row["text"]} for n, row in enumerate(rows)]
    assert score("vizwiz", write("answers.jsonl", answers), data).figures["accuracy"] == 100.0


def test_seed_per_type(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("seed")
    rows[1]["text"] = "A."
    figures = score("seed", write("answers.jsonl", rows), data).figures
    assert figures["types"] == {"Scene Understanding": 100.0, "Action Recognition": 50.0}
    assert (figures["image"], figures["video"]) == (50.0, 100.0)


def test_easy_vqa_takes_either_id(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("easy_vqa")
    answers = [{"question_id": row["id"], "text": row["text"]} for row in rows]
    answers[0]["text"] = "reddish"
    report = score("easy_vqa", write("answers.jsonl", answers), data)
    assert report.figures == {"accuracy": pytest.approx(200 / 3), "correct": 2}
