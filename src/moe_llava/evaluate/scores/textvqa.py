"""TextVQA validation, scored as the original's eval_textvqa.py does with m4c's evaluator."""

import re
from pathlib import Path

from moe_llava.evaluate.scores.files import locate, read_answers, read_json
from moe_llava.evaluate.scores.ids import check_ids
from moe_llava.evaluate.scores.report import ScoreReport
from moe_llava.evaluate.scores.vqa_accuracy import m4c_accuracy

ANNOTATIONS = "TextVQA_0.5.1_val.json"
OCR_LINE = "Reference OCR token: "
_OLD_PROMPT = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def score(predictions: Path, data: Path) -> ScoreReport:
    """Score answers whose `question_id` is the image id; the question is read back from the `prompt`.

    Raises:
        ValueError: a file is malformed, a prompt holds no question, or a question is missing, doubled or unknown.
    """
    source = locate(data, ANNOTATIONS)
    annotations = read_json(source)["data"]
    asked = [(row["image_id"], row["question"].lower()) for row in annotations]
    rows = read_answers(predictions, "prompt")
    given = [(row["question_id"], question_of(row["prompt"])) for row in rows]
    check_ids(given, asked, predictions, source)
    human_answers = {key: row["answers"] for key, row in zip(asked, annotations, strict=True)}
    scores = [m4c_accuracy(row["text"], human_answers[key]) for key, row in zip(given, rows, strict=True)]
    marks = {f"{image}: {question}": mark for (image, question), mark in zip(given, scores, strict=True)}
    accuracy = 100 * (sum(scores) / len(scores))
    table = [["n", "accuracy"], [str(len(scores)), f"{accuracy:.2f}"]]
    return ScoreReport(figures={"accuracy": accuracy}, table=table, n=len(scores), marks=marks)


def question_of(prompt: str) -> str:
    """Return the question of a prompt, in lower case: its first line, or its second where the OCR line comes first.

    Raises:
        ValueError: the prompt has none of the original's three forms.
    """
    old = _OLD_PROMPT.search(prompt)
    if prompt.startswith("OCR tokens: ") and old:
        return old.group(1).lower()
    lines = prompt.split("\n")
    if len(lines) == 3 and OCR_LINE in prompt:
        return lines[1 if prompt.startswith(OCR_LINE.strip()) else 0].lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise ValueError(f"no question found in the prompt {prompt!r}; it should be the question, then the instruction")
