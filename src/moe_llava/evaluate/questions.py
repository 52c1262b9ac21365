"""Questions with known answers (JSONL): read them, ask them, count what was right."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.generate.engine import Decoding, Engine, Request, place_images
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.recipe import Evaluation


@dataclass(frozen=True)
class Question:
    """One question about one image, or none.

    Attributes:
        accepted: answers that count as right.
        kind: a label by which accuracy is split; empty if there is none.
    """

    id: str
    question: str
    accepted: tuple[str, ...]
    image: Path | None = None
    kind: str = ""

    def request(self) -> Request:
        content = place_images(self.question, int(self.image is not None))
        return Request(({"role": "user", "content": content},), (self.image,) if self.image else (), self.id)


def read_questions(path: str | Path, images: str | Path | None = None) -> list[Question]:
    """Read `{"id", "question", "answer", "accepted"?, "image"?, "kind"?}` objects, one a line.

    Images are relative to `images`, or to the file's folder.

    Raises:
        ValueError: a line is wrong, an id is doubled or an image is missing; file and line are named.
    """
    folder = Path(images) if images else Path(path).parent
    questions: dict[str, Question] = {}
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error.strerror}.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            question = _question(line, f"{path}:{number}", folder)
            if question.id in questions:
                raise ValueError(f"{path}:{number}: id {question.id!r} occurs twice.")
            questions[question.id] = question
    if not questions:
        raise ValueError(f"{path} holds no question.")
    return list(questions.values())


def _question(line: str, source: str, folder: Path) -> Question:
    try:
        row = json.loads(line)
        accepted = tuple(str(answer) for answer in row.get("accepted") or [row["answer"]])
        question = Question(
            id=str(row["id"]),
            question=str(row["question"]),
            accepted=accepted,
            image=folder / row["image"] if row.get("image") else None,
            kind=str(row.get("kind", "")),
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{source}: {type(error).__name__} {error}: a line must be an object with "id", "question" and "answer".'
        ) from error
    if question.image is not None and not question.image.is_file():
        raise ValueError(f"{source}: image {question.image} does not exist: give the folder of the images.")
    return question


def ask(
    engine: Engine,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 256,
    title: str = "answering",
) -> list[str]:
    """The model's answers, in the order of the questions, with a bar that bears the title."""
    with tqdm(total=len(questions), desc=title, unit="question") as bar:
        return engine.answer(
            [question.request() for question in questions],
            Decoding(max_new_tokens=max_new_tokens),
            batch_size=batch_size,
            progress=bar.update,
        )


def examine(model: MoeLlavaForConditionalGeneration, processor: MoeLlavaProcessor, evaluation: Evaluation) -> float:
    """Share of a stage's questions that a model answers exactly, while it trains."""
    questions = read_questions(evaluation.path, evaluation.images)[: evaluation.limit]
    decoding = Decoding(max_new_tokens=evaluation.max_new_tokens)
    answers = Engine(model, processor).answer([question.request() for question in questions], decoding)
    return float(accuracy(questions, answers)["accuracy"])


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Exact match after lower-casing and dropping outer blanks and a final full stop."""
    return _plain(answer) in {_plain(one) for one in accepted}


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".").strip()


def accuracy(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
    """`{"accuracy", "n"}`, and the same by `kind` if the questions have kinds."""
    right: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        right[question.kind].append(is_right(answer, question.accepted))
    everything = [value for values in right.values() for value in values]
    result: dict[str, Any] = {"accuracy": sum(everything) / len(everything), "n": len(everything)}
    if set(right) != {""}:
        result["kinds"] = {
            kind: {"accuracy": sum(values) / len(values), "n": len(values)} for kind, values in right.items()
        }
    return result
