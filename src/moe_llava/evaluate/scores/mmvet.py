"""MM-Vet: the official tables from a judge's grades, and the answer file for the judge (or its online evaluator)."""

import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_llava.evaluate.scores.files import locate, read_answers, read_json, require_fields
from moe_llava.evaluate.scores.ids import check_ids
from moe_llava.evaluate.scores.report import ScoreReport

QUESTIONS = "mm-vet.json"


def score(predictions: Path, data: Path) -> ScoreReport:
    """Score a grade file `{"v1_0": {"score": [0.5, ...]}, ...}`, one score in 0..1 for each run of the judge.

    Figures are x 100 and rounded to one digit as the official tables are: total, deviation over runs, each capability,
    and each exact set of capabilities (named by its sorted members, where the official names come in random order).

    Raises:
        ValueError: a file is malformed, grades are missing or unknown, or the numbers of runs differ.
    """
    source = locate(data, QUESTIONS)
    questions: dict[str, Any] = read_json(source)
    grades = _grades(predictions)
    check_ids(grades, questions, predictions, source)
    groups: dict[str, dict[str, list[list[float]]]] = {
        "capabilities": defaultdict(list),
        "integrations": defaultdict(list),
    }
    for key, scores in grades.items():
        capabilities = sorted(set(questions[key]["capability"]))
        groups["integrations"]["_".join(capabilities)].append(scores)
        for capability in capabilities:
            groups["capabilities"][capability].append(scores)
    runs = _run_means(list(grades.values()))
    figures = {
        "total": _one_digit(_mean(runs)),
        "std": _one_digit(_deviation(runs)),
        "runs": list(map(_one_digit, runs)),
    }
    marks = {key: _mean(scores) for key, scores in grades.items()}
    return replace(_report(figures, groups, len(grades)), marks=marks)


def write_upload(predictions: Path, data: Path, out: Path) -> None:
    """Write `{"v1_<id>": answer}`, which the official judge script and the online evaluator read.

    Raises:
        ValueError: the answer file is malformed, or a question is missing, doubled or unknown.
    """
    source = locate(data, QUESTIONS)
    answers = [(f"v1_{row['question_id']}", row["text"]) for row in read_answers(predictions)]
    check_ids((key for key, _ in answers), read_json(source), predictions, source)
    out.write_text(json.dumps(dict(answers), indent=2), encoding="utf-8", newline="\n")


def _grades(predictions: Path) -> dict[str, list[float]]:
    remedy = 'a grade file is {"v1_0": {"score": [...]}, ...}: let the judge grade the answers first'
    try:
        rows = read_json(predictions)
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error
    if not isinstance(rows, dict):
        raise ValueError(f"{predictions} holds a list; {remedy}")
    for key, row in rows.items():
        require_fields(row, f"{predictions}: {key}", "score")
    numbers = {len(row["score"]) for row in rows.values()}
    if len(numbers) != 1 or 0 in numbers:
        raise ValueError(f"{predictions}: questions have {sorted(numbers)} grades; let the judge finish its runs")
    return {key: row["score"] for key, row in rows.items()}


def _report(figures: dict[str, Any], groups: dict[str, dict[str, list[list[float]]]], n: int) -> ScoreReport:
    table = [["group", "n", "score"], ["total", str(n), str(figures["total"])], ["std", "", str(figures["std"])]]
    splits: dict[str, dict[str, float]] = {}
    for split, of in groups.items():
        largest_first = sorted(of.items(), key=lambda item: (-len(item[1]), item[0]))
        splits[split] = {name: _one_digit(_mean(_run_means(scores))) for name, scores in largest_first}
        table += [[name, str(len(of[name])), str(value)] for name, value in splits[split].items()]
    return ScoreReport(figures={**figures, **splits}, table=table, n=n)


def _run_means(scores: list[list[float]]) -> list[float]:
    return [sum(run) / len(run) * 100 for run in zip(*scores, strict=True)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _deviation(values: list[float]) -> float:
    mean = _mean(values)
    return math.sqrt(_mean([(value - mean) ** 2 for value in values]))


def _one_digit(value: float) -> float:
    return round(value * 10) / 10  # as numpy rounds; Python's round(value, 1) differs on some halves
