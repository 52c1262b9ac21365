"""easy-VQA (the demo's data): an answer is right if it is the true one, upper case and outer white space aside."""

from pathlib import Path

from moe_llava.evaluate.scores.files import locate, read_jsonl, require_fields
from moe_llava.evaluate.scores.ids import check_ids, check_unique
from moe_llava.evaluate.scores.report import ScoreReport, percent

QUESTIONS = "test.jsonl"


def score(predictions: Path, data: Path) -> ScoreReport:
    """Score JSON lines `{"id" or "question_id", "text"}` against test.jsonl (`id`, `image`, `question`, `answer`).

    Raises:
        ValueError: a file is malformed, or a question is missing, doubled or unknown.
    """
    source = locate(data, QUESTIONS)
    questions = read_jsonl(source, "id", "answer")
    check_unique((str(row["id"]) for row in questions), source)
    rows = _answers(predictions)
    check_ids((key for key, _ in rows), (str(row["id"]) for row in questions), predictions, source)
    texts = dict(rows)
    marks = {str(row["id"]): float(_same(texts[str(row["id"])], row["answer"])) for row in questions}
    correct = int(sum(marks.values()))
    accuracy = percent(correct, len(questions))
    table = [["n", "correct", "accuracy"], [str(len(questions)), str(correct), f"{accuracy:.2f}"]]
    return ScoreReport(figures={"accuracy": accuracy, "correct": correct}, table=table, n=len(questions), marks=marks)


def _answers(predictions: Path) -> list[tuple[str, str]]:
    rows = read_jsonl(predictions, "text")
    for row in rows:
        require_fields(row, str(predictions), "id" if "id" in row else "question_id")
    return [(str(row.get("id", row.get("question_id"))), row["text"]) for row in rows]


def _same(text: str, truth: str) -> bool:
    return text.strip().lower() == truth.strip().lower()
