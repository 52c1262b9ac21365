"""GQA testdev-balanced: string equality with the one true answer, split as the official eval.py does."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_llava.evaluate.scores.files import Row, is_json_list, locate, read_answers, read_json, require_fields
from moe_llava.evaluate.scores.ids import check_ids, check_unique
from moe_llava.evaluate.scores.report import ScoreReport, percent

QUESTIONS = tuple(
    f"{folder}testdev_balanced_questions.json" for folder in ("", "questions1.2/", "data/", "data/questions1.2/")
)
# A program step whose text holds one of these is not counted as a step of reasoning.
FREE_STEPS = ("exist", "query: name", "choose name")


def score(predictions: Path, data: Path) -> ScoreReport:
    """Score an answer file (JSON lines) or a converted file (`[{"questionId", "prediction"}]`) on balanced questions.

    Validity, plausibility, consistency and grounding need files that testdev does not have; they are left out.

    Raises:
        ValueError: a file is malformed, or a balanced question is missing, doubled or unknown.
    """
    source = locate(data, *QUESTIONS)
    rows = _converted(predictions)
    questions = _balanced(source, rows, predictions)
    answers = {str(row["questionId"]): row["prediction"] for row in rows}
    marks = {key: float(answers[key] == question["answer"]) for key, question in questions.items()}
    return replace(_report([(question, answers[key]) for key, question in questions.items()]), marks=marks)


def write_upload(predictions: Path, data: Path, out: Path) -> None:
    """Write the predictions as the official eval.py reads them, in their own order.

    Raises:
        ValueError: the answer file is malformed, doubled, or does not fit the question file where `data` has one.
    """
    rows = _converted(predictions)
    check_unique((row["questionId"] for row in rows), predictions)
    source = next((data / path for path in QUESTIONS if (data / path).exists()), None)
    if source is not None:
        _balanced(source, rows, predictions)
    out.write_text(json.dumps(rows), encoding="utf-8")


def distribution_distance(pairs: list[tuple[dict[str, Any], str]]) -> float:
    """Return the chi-square distance of predicted from true answers per global group, / 100; lower is better."""
    true: dict[str, Counter[str]] = defaultdict(Counter)
    predicted: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in pairs:
        group = question.get("groups", {}).get("global")
        if group is not None:
            true[group][question["answer"]] += 1
            predicted[group][answer] += 1
    weighted = 0.0
    for group, counts in true.items():
        chi_square = sum((predicted[group][answer] - count) ** 2 / count for answer, count in counts.items())
        weighted += chi_square * counts.total()
    total = sum(counts.total() for counts in true.values())
    return weighted / total / 100 if total else 0.0


def _converted(predictions: Path) -> list[Row]:
    if not is_json_list(predictions):
        answers = read_answers(predictions)
        return [{"questionId": row["question_id"], "prediction": row["text"].rstrip(".").lower()} for row in answers]
    rows: list[Row] = read_json(predictions)
    for row in rows:
        require_fields(row, str(predictions), "questionId", "prediction")
    return rows


def _balanced(source: Path, rows: list[Row], predictions: Path) -> dict[str, Any]:
    """Return the balanced questions, which alone are scored, after checking that `rows` answers each of them once."""
    questions: dict[str, Any] = read_json(source)
    balanced = {key: question for key, question in questions.items() if question["isBalanced"]}
    given = (str(row["questionId"]) for row in rows)
    check_ids((key for key in given if key in balanced or key not in questions), balanced, predictions, source)
    return balanced


def _report(pairs: list[tuple[dict[str, Any], str]]) -> ScoreReport:
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for question, answer in pairs:
        for split, group in _groups(question):
            hits[split][group].append(answer == question["answer"])
    means = {
        split: {group: percent(sum(of[group]), len(of[group])) for group in sorted(of, key=_numbers_in_order)}
        for split, of in hits.items()
    }
    totals = means.pop("total")
    figures = {**totals, "distribution": distribution_distance(pairs), **means}
    table = [["split", "group", "n", "accuracy"]]
    for split, of in {"total": totals, **means}.items():
        table += [[split, group, str(len(hits[split][group])), f"{value:.2f}"] for group, value in of.items()]
    return ScoreReport(figures=figures, table=table, n=len(pairs))


def _groups(question: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "total", "accuracy"
    yield "total", "open" if question["types"]["structural"] == "query" else "binary"
    yield "structural", question["types"]["structural"]
    yield "semantic", question["types"]["semantic"]
    yield "words", str(len(question["question"].split()))
    yield "steps", str(sum(not _is_free(step) for step in question["semantic"]))


def _is_free(step: dict[str, str]) -> bool:
    text = f"{step['operation']}: {step['argument']}"
    return any(free in text for free in FREE_STEPS)


def _numbers_in_order(group: str) -> tuple[int, str]:
    return (int(group) if group.isdecimal() else 0, group)
