"""POPE: does the model see objects that are not there? Scored as LLaVA's eval_pope.py does."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from moe_llava.evaluate.scores.files import Row, locate, read_answers, read_jsonl
from moe_llava.evaluate.scores.ids import check_ids
from moe_llava.evaluate.scores.report import ScoreReport

SETS = ("adversarial", "popular", "random")
QUESTIONS = "llava_pope_test.jsonl"
COLUMNS = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def score(predictions: Path, data: Path) -> ScoreReport:
    """Score the three sets; `f1` is the mean of their F1 x 100, the figures of each set are in 0..1.

    The official code pairs answers with labels by their position in two files. Here they are paired by id, and the two
    files must ask the same: the `random` labels of POPE's later commits are other questions (official score: 50.2 %).

    Raises:
        ValueError: a file is malformed, questions and labels differ, or a question is missing, doubled or unknown.
    """
    source = locate(data, QUESTIONS)
    questions = read_jsonl(source, "question_id", "image", "text", "category")
    rows = read_answers(predictions)
    check_ids((row["question_id"] for row in rows), (row["question_id"] for row in questions), predictions, source)
    said_yes = {row["question_id"]: says_yes(row["text"]) for row in rows}
    figures: dict[str, dict[str, float]] = {}
    marks: dict[str, float] = {}
    for name in SETS:
        asked = [row for row in questions if row["category"] == name]
        labels = _labels(locate(data, label_file(name)), asked)
        pairs = [(said_yes[row["question_id"]], yes) for row, yes in zip(asked, labels, strict=True)]
        figures[name] = binary_scores(pairs)
        marks |= {str(row["question_id"]): float(said == yes) for row, (said, yes) in zip(asked, pairs, strict=True)}
    return replace(_report(figures, len(rows)), marks=marks)


def label_file(name: str) -> str:
    """Where the labels of a set are, in POPE's folder."""
    return f"coco/coco_pope_{name}.json"


def says_yes(text: str) -> bool:
    """Return the official reading of an answer: yes, unless "No", "no" or "not" is a word of its first sentence.

    Words are what stands between single spaces once commas are gone, so "NO" and "no!" are read as yes.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def binary_scores(pairs: Iterable[tuple[bool, bool]]) -> dict[str, float]:
    """Return counts, accuracy, precision, recall, F1 and yes-ratio (0..1) of (said yes, is yes) pairs.

    A ratio over nothing is 0, where the official code stops with a division by zero.
    """
    counted = list(pairs)
    true_yes, false_yes = counted.count((True, True)), counted.count((True, False))
    true_no, false_no = counted.count((False, False)), counted.count((False, True))
    precision = _ratio(true_yes, true_yes + false_yes)
    recall = _ratio(true_yes, true_yes + false_no)
    return {
        "n": len(counted),
        "TP": true_yes,
        "FP": false_yes,
        "TN": true_no,
        "FN": false_no,
        "accuracy": _ratio(true_yes + true_no, len(counted)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(true_yes + false_yes, len(counted)),
    }


def _labels(source: Path, asked: list[Row]) -> list[bool]:
    labels = read_jsonl(source, "image", "text", "label")
    differing = [
        question["question_id"]
        for question, label in zip(asked, labels, strict=False)
        if question["image"] != label["image"] or not question["text"].startswith(label["text"])
    ]
    if differing or len(labels) != len(asked):
        raise ValueError(
            f"{source} ({len(labels)} rows) does not ask what {QUESTIONS} does ({len(asked)} rows; {len(differing)} "
            f"differ, first ids {differing[:5]}); take coco/ from RUCAIBox/POPE at commit e3e3926"
        )
    return [row["label"] != "no" for row in labels]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _report(figures: dict[str, dict[str, float]], n: int) -> ScoreReport:
    mean_f1 = 100 * (sum(of["f1"] for of in figures.values()) / len(figures))
    table = [["set", "n", *COLUMNS]]
    table += [[name, str(of["n"]), *(f"{of[column]:.4f}" for column in COLUMNS)] for name, of in figures.items()]
    table.append(["mean x 100", str(n), "", "", "", f"{mean_f1:.2f}", ""])
    return ScoreReport(figures={"f1": mean_f1, **figures}, table=table, n=n)
