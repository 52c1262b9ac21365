"""VizWiz-VQA: local scoring on val, and the EvalAI upload for test."""

import json
from pathlib import Path

from moe_llava.evaluate.scores.files import is_json_list, locate, read_answers, read_json, read_jsonl, require_fields
from moe_llava.evaluate.scores.ids import check_ids
from moe_llava.evaluate.scores.normalize import flatten, normalize_evalai, normalize_vqa
from moe_llava.evaluate.scores.report import ScoreReport
from moe_llava.evaluate.scores.vqa_accuracy import agreement
from moe_llava.evaluate.scores.vqav2 import report

ANNOTATIONS = "val.json"
VAL_QUESTIONS = "llava_val.jsonl"
TEST_QUESTIONS = "llava_test.jsonl"


def score(predictions: Path, data: Path) -> ScoreReport:
    """Score on val.json as the VizWiz code does: the prediction is normalised, what people said is taken as it stands.

    A result file (`[{"image", "answer"}]`) is scored as it stands; the answers of an answer file (JSON lines) are
    converted as for an upload first. There `question_id` is the image's file name, or an id of llava_val.jsonl.

    Raises:
        ValueError: a file is malformed, or the predictions are not one for every image of val.json.
    """
    source = locate(data, ANNOTATIONS)
    annotations = {row["image"]: row for row in read_json(source)}
    rows = _results(predictions, data)
    check_ids((image for image, _ in rows), annotations, predictions, source)
    answers = dict(rows)
    marks = {
        image: agreement(normalize_vqa(flatten(answers[image])), [human["answer"] for human in row["answers"]])
        for image, row in annotations.items()
    }
    kinds = ({"per_answer_type": row["answer_type"]} for row in annotations.values())
    return report(list(zip(kinds, marks.values(), strict=True)), marks)


def write_upload(predictions: Path, data: Path, out: Path) -> None:
    """Write the EvalAI upload `[{"image", "answer"}]`, in the order of llava_test.jsonl.

    Raises:
        ValueError: the predictions are not one for every test question.
    """
    source = locate(data, TEST_QUESTIONS)
    questions = read_jsonl(source, "question_id", "image")
    rows = read_answers(predictions)
    check_ids((row["question_id"] for row in rows), (row["question_id"] for row in questions), predictions, source)
    texts = {row["question_id"]: row["text"] for row in rows}
    upload = [{"image": row["image"], "answer": normalize_evalai(texts[row["question_id"]])} for row in questions]
    out.write_text(json.dumps(upload), encoding="utf-8")


def _results(predictions: Path, data: Path) -> list[tuple[str, str]]:
    if is_json_list(predictions):
        rows = read_json(predictions)
        for row in rows:
            require_fields(row, str(predictions), "image", "answer")
        return [(row["image"], row["answer"]) for row in rows]
    images = {}
    if (data / VAL_QUESTIONS).exists():
        images = {row["question_id"]: row["image"] for row in read_jsonl(data / VAL_QUESTIONS, "question_id", "image")}
    answers = read_answers(predictions)
    return [(images.get(row["question_id"], str(row["question_id"])), normalize_evalai(row["text"])) for row in answers]
