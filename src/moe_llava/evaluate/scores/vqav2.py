"""VQAv2: local scoring on val2014 as vqaEval.py does it, and the EvalAI upload for the test splits."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from moe_llava.evaluate.scores.files import is_json_list, locate, read_answers, read_json, read_jsonl, require_fields
from moe_llava.evaluate.scores.ids import check_ids
from moe_llava.evaluate.scores.normalize import normalize_evalai
from moe_llava.evaluate.scores.report import ScoreReport
from moe_llava.evaluate.scores.vqa_accuracy import m4c_accuracy, vqa_eval_accuracy

ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
TEST_QUESTIONS = "llava_vqav2_mscoco_test2015.jsonl"
TEST_DEV_QUESTIONS = "llava_vqav2_mscoco_test-dev2015.jsonl"


def score(predictions: Path, data: Path) -> ScoreReport:
    """Score on the annotations of val2014; figures are rounded to two digits, as the official code rounds them.

    A result file (`[{"question_id", "answer"}]`) is scored as it stands. The answers of an answer file (JSON lines) are
    converted as for an upload first, which is how the original's figures came about; it costs "hershey's" its match.
    `m4c_accuracy` is what m4c's evaluator, which always normalises both sides, gives the same answers.

    Raises:
        ValueError: a file is malformed, or the predictions are not one for every annotated question.
    """
    source = locate(data, ANNOTATIONS)
    annotations = {str(row["question_id"]): row for row in read_json(source)["annotations"]}
    rows = _results(predictions)
    check_ids((key for key, _ in rows), annotations, predictions, source)
    answers = dict(rows)
    people = {key: [human["answer"] for human in row["answers"]] for key, row in annotations.items()}
    marks = {key: vqa_eval_accuracy(answers[key], said) for key, said in people.items()}
    m4c = _mean([m4c_accuracy(answers[key], said) for key, said in people.items()])
    official = report([(_kinds(row), marks[key]) for key, row in annotations.items()], marks)
    return replace(official, figures={**official.figures, "m4c_accuracy": m4c})


def report(scored: list[tuple[dict[str, str], float]], marks: dict[str, float]) -> ScoreReport:
    """Return overall accuracy and accuracy per kind, from (kinds, accuracy in 0..1) of each question.

    Kinds name the groups a question is in, such as `{"per_answer_type": "yes/no"}`.
    """
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for kinds, accuracy in scored:
        for kind, group in kinds.items():
            groups[kind][group].append(accuracy)
    overall = _mean([accuracy for _, accuracy in scored])
    splits = {kind: {group: _mean(values) for group, values in sorted(of.items())} for kind, of in groups.items()}
    table = [["group", "n", "accuracy"], ["all", str(len(scored)), f"{overall:.2f}"]]
    for kind, of in splits.items():
        table += [[group, str(len(groups[kind][group])), f"{value:.2f}"] for group, value in of.items()]
    return ScoreReport(figures={"accuracy": overall, **splits}, table=table, n=len(scored), marks=marks)


def write_upload(predictions: Path, data: Path, out: Path) -> None:
    """Write the EvalAI upload: every test2015 question in order, '' where the split that was run does not ask it.

    Raises:
        ValueError: the predictions are neither all of test2015 nor exactly test-dev2015.
    """
    source = locate(data, TEST_QUESTIONS)
    asked = [row["question_id"] for row in read_jsonl(source, "question_id")]
    rows = read_answers(predictions)
    if {row["question_id"] for row in rows} != set(asked):
        source = locate(data, TEST_DEV_QUESTIONS)
    expected = (row["question_id"] for row in read_jsonl(source, "question_id"))
    check_ids((row["question_id"] for row in rows), expected, predictions, source)
    answers = {row["question_id"]: normalize_evalai(row["text"]) for row in rows}
    upload = [{"question_id": key, "answer": answers.get(key, "")} for key in asked]
    out.write_text(json.dumps(upload), encoding="utf-8")


def _results(predictions: Path) -> list[tuple[str, str]]:
    if not is_json_list(predictions):
        return [(str(row["question_id"]), normalize_evalai(row["text"])) for row in read_answers(predictions)]
    rows = read_json(predictions)
    for row in rows:
        require_fields(row, str(predictions), "question_id", "answer")
    return [(str(row["question_id"]), row["answer"]) for row in rows]


def _kinds(annotation: dict[str, str]) -> dict[str, str]:
    return {"per_answer_type": annotation["answer_type"], "per_question_type": annotation["question_type"]}


def _mean(values: list[float]) -> float:
    return round(100 * sum(values) / len(values), 2)
