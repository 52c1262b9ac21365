"""ScienceQA test, scored as LLaVA's eval_science_qa.py does; the IMG figure is the one of the papers' tables."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_llava.evaluate.scores.files import locate, read_answers, read_json
from moe_llava.evaluate.scores.ids import check_ids
from moe_llava.evaluate.scores.report import ScoreReport, percent

LETTERS = "ABCDE"
WRONG = -1
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


def score(predictions: Path, data: Path) -> ScoreReport:
    """Score answers against problems.json on the ids of pid_splits.json's `test`; figures are rounded to two digits.

    A question counts as one with an image if its `prompt` holds `<image>`.

    Raises:
        ValueError: a file is malformed, or a test question is missing, doubled or unknown.
    """
    source = locate(data, "pid_splits.json")
    problems: dict[str, Any] = read_json(locate(data, "problems.json"))
    rows = read_answers(predictions, "prompt")
    check_ids((str(row["question_id"]) for row in rows), read_json(source)["test"], predictions, source)
    hits, image_hits = [], []
    marks = {}
    for row in rows:
        problem = problems[str(row["question_id"])]
        hit = chosen_index(row["text"], len(problem["choices"])) == problem["answer"]
        hits.append(hit)
        marks[str(row["question_id"])] = float(hit)
        if "<image>" in row["prompt"]:
            image_hits.append(hit)
    return replace(_report(hits, image_hits), marks=marks)


def chosen_index(text: str, num_choices: int) -> int:
    """Return the index of the choice that `text` names, or -1 (which is wrong) where it names none of them.

    The text is a letter A-E, starts with one and ". ", or says "The answer is X." exactly once.
    """
    if text and text in LETTERS and len(text) == 1:
        letter = text
    elif len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        letter = text[0]
    else:
        said = _SENTENCE.findall(text)
        letter = said[0] if len(said) == 1 else ""
    return LETTERS.index(letter) if letter and letter in LETTERS[:num_choices] else WRONG


def _report(hits: list[bool], image_hits: list[bool]) -> ScoreReport:
    groups = {"": hits, "image_": image_hits}
    figures: dict[str, Any] = {}
    table = [["questions", "n", "correct", "accuracy"]]
    for prefix, group in groups.items():
        accuracy = round(percent(sum(group), len(group)), 2)
        figures |= {f"{prefix}accuracy": accuracy, f"{prefix}correct": sum(group), f"{prefix}total": len(group)}
        table.append(["with image" if prefix else "all", str(len(group)), str(sum(group)), f"{accuracy:.2f}"])
    return ScoreReport(figures=figures, table=table, n=len(hits))
