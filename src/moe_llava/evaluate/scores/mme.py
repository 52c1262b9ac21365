"""MME: yes/no questions in 14 sub-tasks, two to an image; the official tool's scoring and its answer files."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from moe_llava.evaluate.scores.files import read_answers, read_text
from moe_llava.evaluate.scores.ids import check_ids, check_unique
from moe_llava.evaluate.scores.report import ScoreReport, percent

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TEMPLATES = Path("eval_tool/Your_Results")
IMAGES = Path("MME_Benchmark_release_version")
INSTRUCTION = "Answer the question using a single word or phrase."
SUFFIX = "Please answer yes or no."


class Question(NamedTuple):
    """One question: sub-task, image name without extension, and its text less the instructions."""

    task: str
    image: str
    text: str


def score(predictions: Path, data: Path) -> ScoreReport:
    """Score an answer file (JSON lines), or a folder of the official tool's `<task>.txt` answer files.

    A sub-task scores accuracy x 100 plus the share of images with both questions right x 100; `perception` sums ten
    of them and is the figure of the papers' tables, `cognition` sums four.

    Raises:
        ValueError: a file is malformed, or a question is missing, doubled or unknown.
    """
    truths, source = _truths(data)
    answers = _tool_answers(predictions) if predictions.is_dir() else _model_answers(predictions)
    check_ids((question for question, _ in answers), truths, predictions, source)
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    marks = {}
    for question, answer in answers:
        hit = read_yes_no(answer) == truths[question][1].lower()
        hits[question.task][question.image].append(hit)
        marks["/".join(question)] = float(hit)
    scores = {task: _task_scores(list(hits[task].values())) for task in PERCEPTION + COGNITION}
    return replace(_report(scores, len(answers)), marks=marks)


def read_yes_no(answer: str) -> str:
    """Return "yes", "no" or "other": which of the two the first four characters hold, "yes" going first."""
    start = answer.lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


def write_upload(predictions: Path, data: Path, out: Path) -> None:
    """Write the folder of `<task>.txt` files that the official tool reads, lines in the order of the predictions.

    Raises:
        ValueError: the answer file is malformed, or a question is missing, doubled or unknown.
    """
    truths, source = _truths(data)
    answers = _model_answers(predictions)
    check_ids((question for question, _ in answers), truths, predictions, source)
    lines: dict[str, list[str]] = defaultdict(list)
    for question, answer in answers:
        text, truth = truths[question]
        lines[question.task].append(f"{question.image}.txt\t{text}\t{truth}\t{answer}\n")
    out.mkdir(parents=True, exist_ok=True)
    for task, of in lines.items():
        (out / f"{task}.txt").write_bytes("".join(of).encode("utf-8"))


def _truths(data: Path) -> tuple[dict[Question, tuple[str, str]], Path]:
    """Return (text, truth) of every question, from the official tool's templates or else the benchmark's folders."""
    templates = data / TEMPLATES
    source = templates if templates.is_dir() else data / IMAGES
    rows = []
    for task in PERCEPTION + COGNITION:
        found = _template(templates, task) if templates.is_dir() else _image_folder(data / IMAGES / task)
        if not found:
            raise ValueError(f"{source} has no questions of {task}; give the folder with MME's {TEMPLATES} or {IMAGES}")
        rows += [(_question(task, image, text), (text, truth)) for image, text, truth in found]
    check_unique((question for question, _ in rows), source)
    return dict(rows), source


def _template(folder: Path, task: str) -> list[list[str]]:
    return _columns(folder / f"{task}.txt", 3)


def _image_folder(folder: Path) -> list[list[str]]:
    questions = folder / "questions_answers_YN"
    files = sorted((questions if questions.is_dir() else folder).glob("*.txt"))
    return [[file.name, *columns] for file in files for columns in _columns(file, 2)]


def _model_answers(path: Path) -> list[tuple[Question, str]]:
    answers = []
    for row in read_answers(path, "prompt"):
        folders = str(row["question_id"]).split("/")
        answers.append((_question(folders[0], folders[-1], row["prompt"]), row["text"]))
    return answers


def _tool_answers(folder: Path) -> list[tuple[Question, str]]:
    answers = []
    for file in sorted(folder.glob("*.txt")):
        answers += [(_question(file.stem, image, text), answer) for image, text, _, answer in _columns(file, 4)]
    return answers


def _question(task: str, image: str, text: str) -> Question:
    bare = text.replace(INSTRUCTION, "").replace(SUFFIX, "")
    return Question(task, image.split(".")[0], " ".join(bare.split()))


def _columns(file: Path, count: int) -> list[list[str]]:
    rows = [line.strip("\r\n").split("\t") for line in read_text(file).split("\n") if line.strip()]
    for row in rows:
        if len(row) != count:
            raise ValueError(f"{file}: {len(row)} tab-separated columns where {count} are due: {row}")
    return rows


def _task_scores(images: list[list[bool]]) -> tuple[float, float]:
    questions = [hit for image in images for hit in image]
    return percent(sum(questions), len(questions)), percent(sum(map(all, images)), len(images))


def _report(scores: dict[str, tuple[float, float]], n: int) -> ScoreReport:
    sub = {task: sum(pair) for task, pair in scores.items()}
    totals = {"perception": sum(sub[task] for task in PERCEPTION), "cognition": sum(sub[task] for task in COGNITION)}
    table = [["sub-task", "acc", "acc+", "score"]]
    table += [[task, *(f"{value:.2f}" for value in (*pair, sub[task]))] for task, pair in scores.items()]
    table += [[name, "", "", f"{value:.2f}"] for name, value in totals.items()]
    return ScoreReport(figures={**totals, "sub": sub}, table=table, n=n)
