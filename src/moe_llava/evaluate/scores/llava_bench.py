"""LLaVA-Bench (in the wild): the official table from a judge's reviews, as summarize_gpt_review.py prints it.

The judge is part of the figure: LLaVA asked gpt-4-0314, MoE-LLaVA's script gpt-3.5-turbo; they do not compare.
"""

from collections import defaultdict
from pathlib import Path

from moe_llava.evaluate.scores.files import Row, read_jsonl
from moe_llava.evaluate.scores.ids import check_ids, check_unique
from moe_llava.evaluate.scores.report import ScoreReport

QUESTIONS = "questions.jsonl"
COLUMNS = ("relative", "reference", "model")


def score(predictions: Path, data: Path) -> ScoreReport:
    """Score a review file (JSON lines with `question_id`, `category`, `tuple`), or a folder of them: one for each run.

    `relative` is 100 x the model's mean grade / the reference's mean grade over all reviews, averaged over runs.

    Raises:
        ValueError: a file is malformed, a question of questions.jsonl (where `data` has it) is missing, doubled or
            unknown, or the judge failed on a review (officially it then counts as -1).
    """
    files = sorted(predictions.glob("*.jsonl")) if predictions.is_dir() else [predictions]
    if not files:
        raise ValueError(f"{predictions} holds no review files (*.jsonl); give a judge's reviews")
    reviews = {file.name: _reviews(file, data) for file in files}
    runs = {name: summarize(rows) for name, rows in reviews.items()}
    relative = sum(run["all"]["relative"] for run in runs.values()) / len(runs)
    table = [["run", "category", *COLUMNS]]
    for name, run in runs.items():
        table += [[name, category, *(f"{of[column]:.1f}" for column in COLUMNS)] for category, of in run.items()]
    table.append(["mean", "all", f"{relative:.1f}", "", ""])
    grades: dict[str, list[float]] = defaultdict(list)
    for review in (review for rows in reviews.values() for review in rows):
        grades[str(review["question_id"])].append(review["tuple"][1] / 10)
    marks = {key: sum(of) / len(of) for key, of in grades.items()}
    figures = {"relative": relative, "runs": runs}
    return ScoreReport(figures=figures, table=table, n=sum(map(len, reviews.values())), marks=marks)


def summarize(reviews: list[Row]) -> dict[str, dict[str, float]]:
    """Return, for `all` and each category, 100 x model / reference and both mean grades x 10, rounded as officially.

    The means are rounded to three digits first and the ratio is of the rounded ones.
    """
    grades: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for review in reviews:
        grades[review["category"]].append(review["tuple"])
        grades["all"].append(review["tuple"])
    summary = {}
    for category, pairs in sorted(grades.items()):
        reference, model = (round(sum(column) / len(pairs), 3) for column in zip(*pairs, strict=True))
        figures = (model / reference * 100, reference * 10, model * 10)
        summary[category] = {name: round(value, 1) for name, value in zip(COLUMNS, figures, strict=True)}
    return summary


def _reviews(file: Path, data: Path) -> list[Row]:
    reviews = read_jsonl(file, "question_id", "category", "tuple")
    ids = [review["question_id"] for review in reviews]
    check_unique(ids, file)
    questions = data / QUESTIONS
    if questions.exists():
        check_ids(ids, (row["question_id"] for row in read_jsonl(questions, "question_id")), file, questions)
    failed = [review["question_id"] for review in reviews if min(review["tuple"]) < 0]
    if failed:
        raise ValueError(f"{file}: the judge failed on {len(failed)} questions (first {failed[:5]}); ask it again")
    return reviews
