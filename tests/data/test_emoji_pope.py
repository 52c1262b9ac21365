"""The POPE-shaped benchmark of the demo: what is asked about is there or not, and negatives are of the stated kind."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from moe_llava.data.demo.concepts import Concept
from moe_llava.data.demo.emoji_pope import POPULAR, SETS, absent, question_rows, write_benchmark
from moe_llava.evaluate.benchmarks import BENCHMARKS
from moe_llava.evaluate.scores import score

KINDS = ("animal", "food", "tool")


@pytest.fixture(scope="module")
def concepts() -> list[Concept]:
    """Sixty things of three kinds; the first twenty names are borne by two of them."""
    names = [chr(ord("a") + n // 20) + chr(ord("a") + n % 20) for n in range(60)]
    names = [f"{name}{name}" for name in names]
    listed = [*names, *names[:POPULAR]]
    return [Concept(f"1F{n:03d}", name, KINDS[n % 3], KINDS[n % 3], (name,)) for n, name in enumerate(listed)]


class Paper:
    """A style that draws every concept as a blank square."""

    name = "paper"

    def picture(self, code: str) -> Image.Image:
        return Image.new("RGB", (128, 128), f"#{code[2:]}")


def test_questions_are_half_yes_and_true(concepts: list[Concept]) -> None:
    shown = concepts[::2]
    sets = question_rows(shown, concepts, seed=0)
    assert tuple(sets) == SETS
    assert sets == question_rows(shown, concepts, seed=0) != question_rows(shown, concepts, seed=1)
    names = {f"{concept.code}.png": concept.name for concept in shown}
    for rows in sets.values():
        assert [row["label"] for row in rows] == ["yes", "no"] * len(shown)
        for row in rows:
            asked = row["text"].removeprefix("does the image show ").rstrip("?").split()[-1]
            assert (asked == names[row["image"]]) == (row["label"] == "yes")


def test_negatives_are_near_or_frequent_or_any(concepts: list[Concept]) -> None:
    chosen = absent(concepts, concepts, random.Random(0))
    bearers = Counter(concept.name for concept in concepts)
    near = {name: sum(a.kind == b.kind for a, b in zip(concepts, of, strict=True)) for name, of in chosen.items()}
    assert near["adversarial"] == len(concepts) > 2 * max(near["popular"], near["random"])
    assert all(bearers[one.name] == 2 for one in chosen["popular"])
    assert 0 < sum(bearers[one.name] == 2 for one in chosen["random"]) < len(concepts)


def test_it_reads_and_scores_as_pope_does(concepts: list[Concept], tmp_path: Path) -> None:
    count = write_benchmark(tmp_path, Paper(), concepts, 0, lambda *_: None)  # type: ignore[arg-type]
    benchmark = BENCHMARKS["emoji_pope"]
    folder = benchmark.folder(tmp_path)
    asked = benchmark.read(folder)
    assert count == len(concepts) and len(asked.items) == 3 * 2 * count
    assert asked.items[0].image.is_file()
    answers = tmp_path / "answers.jsonl"
    rows = [{"question_id": item.id, "text": ("yes", "no")[n % 2]} for n, item in enumerate(asked.items)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score("emoji_pope", answers, folder).figures["f1"] == 100
