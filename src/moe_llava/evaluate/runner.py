"""Questions -> answers -> scores, for benchmarks and for one's own questions alike."""

import copy
import hashlib
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moe_llava.checkpoint.folder import load_processor
from moe_llava.checkpoint.published import local_checkpoint
from moe_llava.data.pixels import llava_pixels
from moe_llava.data.template import TEMPLATES
from moe_llava.evaluate import scores
from moe_llava.evaluate.benchmarks import Benchmark, Preprocessing
from moe_llava.evaluate.items import Item, answer_file
from moe_llava.evaluate.judge import NEEDS, Judge, grade
from moe_llava.evaluate.processes import Processes
from moe_llava.evaluate.questions import Question, accuracy, is_right
from moe_llava.evaluate.scores.files import locate, read_answers
from moe_llava.evaluate.scores.report import ScoreReport
from moe_llava.generate.engine import Decoding, Engine, ImageSource
from moe_llava.train.folder import write_json

PREDICTIONS = "predictions.jsonl"
SCORES = "scores.json"
MARKS = "marks.json"


@dataclass(frozen=True)
class Task:
    """A set of questions and how its answers are scored.

    Attributes:
        facts: what `scores.json` says of it besides: split, scorer.
        score: answer file -> report; None where the figure cannot be had here, and `note` says why.
        figure: the report's figures -> the one for tables.
    """

    name: str
    title: str
    items: list[Item]
    max_new_tokens: int
    preprocessing: Preprocessing
    facts: dict[str, Any]
    score: Callable[[Path], ScoreReport] | None
    figure: Callable[[dict[str, Any]], float]
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of one task: the contents of its `scores.json`, and the scorer's own table if there is a score."""

    title: str
    scores: dict[str, Any]
    report: ScoreReport | None


class Model:
    """A checkpoint, opened when something is to be asked."""

    def __init__(self, folder: str | Path, processes: Processes, quantize: str | None = None) -> None:
        self.name = str(folder)
        self.folder = local_checkpoint(folder)
        self.quantize = quantize
        self.processor = load_processor(self.folder)
        self._processes = processes
        self._engines: dict[str, Engine] = {}

    def engine(self, preprocessing: Preprocessing) -> Engine:
        """The engine that prepares images in this way; both share the weights."""
        if "model" not in self._engines:
            self._engines["model"] = Engine.load(
                self.folder, device=self._processes.device, quantize=self.quantize, pack=True
            )
        if preprocessing not in self._engines:
            plain = self._engines["model"]
            processor = copy.copy(plain.processor)
            processor.image_processor = llava_pixels(processor.image_processor, pad=False)
            self._engines[preprocessing] = Engine(plain.model, processor)
        return self._engines[preprocessing]

    def fingerprint(self) -> str:
        """Changes when the files of the checkpoint do, and when it is quantised."""
        files = sorted(path for path in self.folder.iterdir() if path.suffix in (".safetensors", ".json", ".jinja"))
        facts: list[object] = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        facts += [self.quantize] if self.quantize else []
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def template(self) -> str:
        """The name of the chat template, "custom" for one that has none here."""
        own = self.processor.chat_template
        return next((name for name, text in TEMPLATES.items() if text == own), "custom")


def task_of_benchmark(
    benchmark: Benchmark,
    data: Path,
    *,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    preprocessing: Preprocessing | None = None,
    judge: Judge | None = None,
) -> Task:
    """A benchmark's task.

    With a limit only the first questions are asked. That gives no score: the official ones are of whole splits.

    Raises:
        ValueError: a file of the benchmark is missing or malformed.
    """
    folder = benchmark.folder(data)
    asked = benchmark.read(folder)
    items = asked.items[:limit]
    whole = len(items) == len(asked.items)
    judge = judge if benchmark.judged else None
    if whole:
        for names in (*asked.needs, *((name,) for name in NEEDS.get(benchmark.name, ()) if judge)):
            locate(folder, *names)
    note = ""
    if not whole:
        note = f"{len(items):,} of {len(asked.items):,} questions: the official score is of all"
    elif not asked.scored:
        note = f"the answers of {asked.split} are not public: submit {benchmark.upload}"
    elif benchmark.judged and judge is None:
        note = "a judge must grade the answers: give --judge-url and --judge-model"

    def score(predictions: Path) -> ScoreReport:
        graded = grade(benchmark.name, predictions, folder, judge) if judge else predictions
        return scores.score(benchmark.name, graded, folder)

    return Task(
        name=benchmark.name,
        title=benchmark.title,
        items=items,
        max_new_tokens=max_new_tokens or benchmark.max_new_tokens,
        preprocessing=preprocessing or benchmark.preprocessing,
        facts={"split": asked.split, "scorer": benchmark.scorer, "data": str(folder)}
        | ({"judge": judge.facts()} if judge else {})
        | ({"upload": benchmark.upload} if whole and benchmark.uploads(asked) else {}),
        score=None if note else score,
        figure=benchmark.figure,
        note=note,
    )


def task_of_questions(questions: Sequence[Question], source: Path, *, max_new_tokens: int | None = None) -> Task:
    """The task of one's own questions: exact match with any accepted answer."""

    def score(predictions: Path) -> ScoreReport:
        return accuracy_report(questions, [row["text"] for row in read_answers(predictions)])

    return Task(
        name="questions",
        title=source.stem,
        items=[Item(question.id, question.question, question.image) for question in questions],
        max_new_tokens=max_new_tokens or 16,
        preprocessing="model",
        facts={"split": source.name, "scorer": "exact match", "data": str(source)},
        score=score,
        figure=lambda figures: figures["accuracy"],
    )


def accuracy_report(questions: Sequence[Question], texts: Sequence[str]) -> ScoreReport:
    """Accuracy x 100, in all and by kind."""
    counted = accuracy(questions, texts)
    kinds = {kind: 100 * of["accuracy"] for kind, of in counted.get("kinds", {}).items()}
    table = [["questions", "n", "accuracy"], ["all", str(counted["n"]), f"{100 * counted['accuracy']:.2f}"]]
    table += [[kind, str(of["n"]), f"{100 * of['accuracy']:.2f}"] for kind, of in counted.get("kinds", {}).items()]
    figures = {"accuracy": 100 * counted["accuracy"]} | ({"kinds": kinds} if kinds else {})
    marks = {
        question.id: float(is_right(text, question.accepted)) for question, text in zip(questions, texts, strict=True)
    }
    return ScoreReport(figures=figures, table=table, n=counted["n"], marks=marks)


def answer_task(
    task: Task,
    model: Model,
    path: Path,
    processes: Processes,
    *,
    batch_size: int = 256,
    title: str = "",
    restart: bool = False,
) -> tuple[list[str], float]:
    """Answers of a task, written to `path`, and the seconds they took; see `answer_file`."""
    settings = {
        "task": task.name,
        "questions": _digest(task.items),
        "checkpoint": model.fingerprint(),
        "max_new_tokens": task.max_new_tokens,
        "preprocessing": task.preprocessing,
    }
    return answer_file(
        path,
        task.items,
        lambda: model.engine(task.preprocessing),
        settings,
        decoding=Decoding(task.max_new_tokens),
        batch_size=batch_size,
        title=title or task.title,
        processes=processes,
        restart=restart,
    )


def run(task: Task, model: Model, out: Path, processes: Processes, *, batch_size: int = 256) -> Outcome | None:
    """Answer a task's questions into `out/predictions.jsonl`, score them into `out/scores.json`, write the upload.

    What was answered before is not asked again. Of several processes, only the first has an outcome.

    Raises:
        ValueError: `out` holds answers of another model, other questions or other settings.
    """
    predictions = out / PREDICTIONS
    _, seconds = answer_task(task, model, predictions, processes, batch_size=batch_size)
    if not processes.is_first:
        return None
    report = task.score(predictions) if task.score else None
    result = {
        "benchmark": task.name,
        "figure": task.figure(report.figures) if report else None,
        "n": len(task.items),
        **task.facts,
        **({"note": task.note} if task.note else {}),
        "figures": report.figures if report else None,
        "model": model.name,
        "template": model.template(),
        "preprocessing": task.preprocessing,
        "max_new_tokens": task.max_new_tokens,
        "seconds": round(seconds, 1),
        "version": version("moe-llava"),
        "commit": commit(),
    }
    if report:
        write_json(out / MARKS, report.marks)
    write_json(out / SCORES, result)
    if "upload" in task.facts:
        scores.write_upload(task.name, predictions, Path(task.facts["data"]), out / task.facts["upload"])
    return Outcome(task.title, result, report)


def _digest(items: Sequence[Item]) -> str:
    rows = [[item.id, item.prompt, item.asked, _name(item.image)] for item in items]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _name(image: ImageSource | None) -> str | None:
    return hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else None if image is None else str(image)


def commit() -> str | None:
    """The commit of this library's source, "+" where it was changed since; None where it is installed without."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")
