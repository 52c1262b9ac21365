"""A gap or a mix-up in the predictions stops the scoring with its name; it never lowers the score."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_llava.evaluate.scores import SCORERS, score

Write = Callable[..., Path]
Tiny = Callable[[str], tuple[Path, list[dict[str, Any]]]]

BY_LINE = sorted(set(SCORERS) - {"mmvet"})


def id_of(row: dict[str, Any]) -> str:
    return str(row.get("id", row.get("question_id"))).split("/")[0]


@pytest.mark.parametrize("name", BY_LINE)
def test_missing_ids_are_named(stand_in: Tiny, write: Write, name: str) -> None:
    data, rows = stand_in(name)
    with pytest.raises(ValueError, match=rf"answers\.jsonl.* 1 without a prediction \({id_of(rows[0])}"):
        score(name, write("answers.jsonl", rows[1:]), data)


@pytest.mark.parametrize("name", BY_LINE)
def test_doubled_ids_are_named(stand_in: Tiny, write: Write, name: str) -> None:
    data, rows = stand_in(name)
    with pytest.raises(ValueError, match=rf"1 .*more than once \({id_of(rows[-1])}"):
        score(name, write("answers.jsonl", [*rows, rows[-1]]), data)


@pytest.mark.parametrize("name", BY_LINE)
def test_unknown_ids_are_named(stand_in: Tiny, write: Write, name: str) -> None:
    data, rows = stand_in(name)
    stray = rows[0] | {"id" if name == "easy_vqa" else "question_id": 987}
    with pytest.raises(ValueError, match=r"1 not in .* \(987"):
        score(name, write("answers.jsonl", [*rows, stray]), data)


def test_the_first_few_ids_are_named_and_all_are_counted(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("mme")
    with pytest.raises(ValueError, match=r"27 without a prediction \((existence|count) / 1 / .*, \.\.\.\)"):
        score("mme", write("answers.jsonl", rows[:1]), data)


def test_mmvet_names_ungraded_questions(stand_in: Tiny, write: Write) -> None:
    data, _ = stand_in("mmvet")
    with pytest.raises(ValueError, match=r"1 without a prediction \(v1_1\)"):
        score("mmvet", write("grades.json", {"v1_0": {"score": [0.5]}}), data)
    with pytest.raises(ValueError, match=r"\[1, 2\] grades; let the judge finish"):
        score("mmvet", write("grades.json", {"v1_0": {"score": [0.5]}, "v1_1": {"score": [0.5, 0.5]}}), data)


def test_mmvet_refuses_answers_without_grades(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("mmvet")
    for file in (write("answers.jsonl", rows), write("answers.json", rows)):
        with pytest.raises(ValueError, match="let the judge grade the answers first"):
            score("mmvet", file, data)


def test_pope_refuses_labels_of_other_questions(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("pope")
    answers = write("answers.jsonl", rows)
    labels = data / "coco/coco_pope_random.json"
    first, second = labels.read_text(encoding="utf-8").splitlines()
    labels.write_text(f"{second}\n{first}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"2 differ, first ids \[5, 6\].*e3e3926"):
        score("pope", answers, data)
    labels.write_text(f"{first}\n{second}\n{second}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"\(3 rows\) does not ask what"):
        score("pope", answers, data)


def test_llava_bench_refuses_failed_reviews(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("llava_bench")
    rows[1]["tuple"] = [-1, -1]
    with pytest.raises(ValueError, match=r"judge failed on 1 questions \(first \[1\]\)"):
        score("llava_bench", write("answers.jsonl", rows), data)


def test_mmbench_without_answers_points_to_the_upload(stand_in: Tiny, write: Write) -> None:
    data, rows = stand_in("mmbench")
    table = data / "mmbench_dev_20230712.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("answer", "unknown"), encoding="utf-8")
    with pytest.raises(ValueError, match="has no answers; write the file for the server"):
        score("mmbench", write("answers.jsonl", rows), data)


def test_mme_refuses_broken_answer_lines(stand_in: Tiny, tmp_path: Path) -> None:
    data, _ = stand_in("mme")
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool/OCR.txt").write_text("1.jpg\tIs it yes?\tYes\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"OCR\.txt: 3 tab-separated columns where 4 are due"):
        score("mme", tmp_path / "tool", data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"question_id": 1, "text": "x"}\nnonsense\n', "answers.jsonl:2: not JSON"),
        ("3\n", "answers.jsonl:1: not a JSON object"),
        ('\n{"question_id": 1}\n', r"answers.jsonl:2: no field text \(found question_id\)"),
        ('{"question_id": 1, "text": null}\n', "`text` of question 1 is not a string"),
    ],
)
def test_malformed_predictions_name_file_and_line(stand_in: Tiny, tmp_path: Path, content: str, message: str) -> None:
    data, _ = stand_in("seed")
    (tmp_path / "answers.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        score("seed", tmp_path / "answers.jsonl", data)


def test_absent_files_are_named(stand_in: Tiny, write: Write, tmp_path: Path) -> None:
    data, rows = stand_in("seed")
    with pytest.raises(ValueError, match=r"nowhere\.jsonl is not a file"):
        score("seed", tmp_path / "nowhere.jsonl", data)
    with pytest.raises(ValueError, match=r"holds none of SEED-Bench\.json"):
        score("seed", write("answers.jsonl", rows), tmp_path)


def test_unknown_benchmarks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'vqa' is not a benchmark that can be scored; choose from vqav2, gqa"):
        score("vqa", tmp_path, tmp_path)
