"""easy-VQA: drawn shapes with questions about them -> conversations to learn from, single questions to be asked.

The official split is kept. Its test questions also occur in training; the test images do not.
"""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_llava.data.demo.files import Progress, conversation, package_folder, write_bytes

IMAGES = {"train": 4000, "test": 1000}
QUESTIONS = {"train": 38_575, "test": 9_673}
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


@dataclass(frozen=True)
class Question:
    """One question about image `image` of its split, with its one-word answer."""

    image: int
    text: str
    answer: str

    @property
    def words(self) -> set[str]:
        return set(self.text.rstrip("?").split())

    @property
    def is_closed(self) -> bool:
        """Whether it is answered by yes or no."""
        return self.answer in ("yes", "no")

    @property
    def denies(self) -> bool:
        """Whether it asks in the negative: "is there not a red shape?", "is no red shape present?"."""
        return not self.words.isdisjoint({"not", "no"})

    @property
    def grants(self) -> bool:
        """Whether what it speaks of is in the picture: of a yes/no question, if its answer affirms it."""
        return not self.is_closed or (self.answer == "yes") != self.denies


def read_questions(split: str, limit: int | None = None) -> list[Question]:
    """The questions of `"train"` or `"test"`, about the first `limit` images if given.

    Raises:
        ValueError: easy-vqa is not installed, or is not the version with the official number of questions.
    """
    path = package_folder("easy_vqa") / "data" / split / "questions.json"
    questions = [Question(image, text, answer) for text, answer, image in json.loads(path.read_text(encoding="utf-8"))]
    images = len({question.image for question in questions})
    if (len(questions), images) != (QUESTIONS[split], IMAGES[split]):
        raise ValueError(
            f"{path} holds {len(questions)} questions on {images} images, not {QUESTIONS[split]} on {IMAGES[split]}: "
            "pip install 'easy-vqa==1.0'"
        )
    return [question for question in questions if limit is None or question.image < limit]


def image_path(split: str, image: int) -> str:
    """Path of a picture, relative to the folder of the easy-VQA files."""
    return f"images/{split}/{image}.png"


def copy_images(folder: Path, split: str, questions: Sequence[Question], report: Progress) -> int:
    """Copy the pictures that `questions` ask about into `folder`, those not yet there; returns how many there are."""
    source = package_folder("easy_vqa") / "data" / split / "images"
    images = sorted({question.image for question in questions})
    for done, image in enumerate(images, start=1):
        target = folder / image_path(split, image)
        if not target.exists():
            write_bytes(target, (source / f"{image}.png").read_bytes())
        report(f"easy-VQA {split} images", done, len(images))
    return len(images)


def train_records(questions: Sequence[Question], turns: int | None, seed: int) -> list[dict]:
    """Conversations about each image, its questions in random order, at most `turns` in one (all when None)."""
    rng = random.Random(f"easy-vqa {seed}")
    of_image: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question in questions:
        of_image[question.image].append((question.text, question.answer))
    records = []
    for image, pairs in sorted(of_image.items()):
        rng.shuffle(pairs)
        size = turns or len(pairs)
        for part, start in enumerate(range(0, len(pairs), size)):
            identifier = f"easy_vqa/train/{image}/{part}"
            records.append(conversation(identifier, pairs[start : start + size], image_path("train", image)))
    return records


def balanced_records(questions: Sequence[Question], turns: int | None, seed: int) -> list[dict]:
    """Conversations as in `train_records`, with each question that asks for the colour there is in them four times.

    Seven in eight yes/no questions about a colour ask for another one, and a small model long says no to all of them.
    """
    rightly = [
        question
        for question in questions
        if question.is_closed and question.grants and not question.words.isdisjoint(COLORS)
    ]
    return train_records([*questions, *rightly * 3], turns, seed)


def balanced(pairs: Sequence[tuple[str, str]], caption: str, rng: random.Random) -> list[tuple[str, str]]:
    """All of an image's questions that are open or name a word of its caption, and as many other yes/no questions."""
    words = set(caption.split()[1:])
    closed = [pair for pair in pairs if pair[1] in ("yes", "no")]
    named = [pair for pair in closed if words.intersection(pair[0].rstrip("?").split())]
    others = [pair for pair in closed if pair not in named]
    chosen = [pair for pair in pairs if pair not in closed] + named + rng.sample(others, min(len(named), len(others)))
    rng.shuffle(chosen)
    return chosen


def test_rows(questions: Sequence[Question]) -> list[dict]:
    """One question a row: `id`, `image`, `question`, `answer`."""
    return [
        {
            "id": f"easy_vqa/test/{number}",
            "image": image_path("test", question.image),
            "question": question.text,
            "answer": question.answer,
        }
        for number, question in enumerate(questions)
    ]


def captions(questions: Sequence[Question]) -> dict[int, str]:
    """Image -> "a blue rectangle", as far as the questions and their answers give it away; others are left out.

    A word is given away by being the answer, or by a question that grants it: any but a yes/no question, or a yes/no
    question whose answer affirms it.
    """
    given: dict[int, set[str]] = defaultdict(set)
    for question in questions:
        given[question.image].update([*(question.words if question.grants else ()), question.answer])
    texts = {}
    for image, words in sorted(given.items()):
        colors, shapes = words.intersection(COLORS), words.intersection(SHAPES)
        assert len(colors) <= 1 and len(shapes) <= 1, f"image {image} contradicts itself: {colors | shapes}"
        if colors or shapes:
            texts[image] = " ".join(["a", *colors, *(shapes or {"shape"})])
    return texts
