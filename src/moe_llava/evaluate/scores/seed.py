"""SEED-Bench: the letter must be the answer, scored and written for upload as convert_seed_for_submission.py does."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_llava.evaluate.scores.files import locate, read_answers, read_json
from moe_llava.evaluate.scores.ids import check_ids
from moe_llava.evaluate.scores.report import ScoreReport, percent

QUESTIONS = "SEED-Bench.json"


def score(predictions: Path, data: Path) -> ScoreReport:
    """Score answers on all questions, on images, on videos, and per question type.

    Raises:
        ValueError: a file is malformed, or a question is missing, doubled or unknown.
    """
    questions, texts = _pair(predictions, data)
    types = {number: name for name, number in questions["question_type"].items()}
    hits: dict[str, dict[str, list[bool]]] = {"media": defaultdict(list), "types": defaultdict(list)}
    marks = {}
    for question in questions["questions"]:
        hit = texts[str(question["question_id"])] == question["answer"]
        hits["media"][question["data_type"]].append(hit)
        hits["types"][types[question["question_type_id"]]].append(hit)
        marks[str(question["question_id"])] = float(hit)
    return replace(_report(hits), marks=marks)


def write_upload(predictions: Path, data: Path, out: Path) -> None:
    """Write the upload, JSON lines `{"question_id", "prediction"}` in the order of the question file.

    Raises:
        ValueError: a file is malformed, or a question is missing, doubled or unknown.
    """
    questions, texts = _pair(predictions, data)
    ids = (question["question_id"] for question in questions["questions"])
    lines = (json.dumps({"question_id": key, "prediction": texts[str(key)]}) + "\n" for key in ids)
    out.write_text("".join(lines), encoding="utf-8", newline="\n")


def _pair(predictions: Path, data: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the question file and the answers by id; ids are numbers in the one and may be text in the other."""
    source = locate(data, QUESTIONS)
    questions = read_json(source)
    rows = read_answers(predictions)
    asked = (str(question["question_id"]) for question in questions["questions"])
    check_ids((str(row["question_id"]) for row in rows), asked, predictions, source)
    return questions, {str(row["question_id"]): row["text"] for row in rows}


def _report(hits: dict[str, dict[str, list[bool]]]) -> ScoreReport:
    every = [hit for of in hits["media"].values() for hit in of]
    media, types = (
        {name: percent(sum(of), len(of)) for name, of in hits[split].items()} for split in ("media", "types")
    )
    figures = {"accuracy": percent(sum(every), len(every)), **media, "types": types}
    table = [["group", "n", "accuracy"], ["all", str(len(every)), f"{figures['accuracy']:.2f}"]]
    for split, values in (("media", media), ("types", types)):
        table += [[name, str(len(hits[split][name])), f"{value:.2f}"] for name, value in values.items()]
    return ScoreReport(figures=figures, table=table, n=len(every))
