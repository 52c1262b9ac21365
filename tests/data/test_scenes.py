"""The POPE-shaped benchmark of the demo: what is asked about is there or not, and negatives are of the stated kind."""

from collections import Counter
from pathlib import Path

import pytest

from moe_llava.data.demo.concepts import Concept
from moe_llava.data.demo.scenes import PRESENT, SCENES, absent, make_scenes, question_rows, write_benchmark
from moe_llava.evaluate.benchmarks import BENCHMARKS
from moe_llava.evaluate.scores import score

KINDS = ("animal", "food", "tool")


@pytest.fixture(scope="module")
def concepts() -> list[Concept]:
    """Thirty things whose names share no letter."""
    names = [chr(ord("a") + n % 26) * (3 + n // 26) for n in range(30)]
    return [Concept(f"1F{n:03d}", name, KINDS[n % 3], "x", (name,)) for n, name in enumerate(names)]


class Paper:
    """A style that draws every concept as a blank square."""

    name = "paper"

    def picture(self, code: str):
        from PIL import Image

        return Image.new("RGB", (128, 128), f"#{code[2:]}")


def test_questions_are_half_yes_and_true(concepts: list[Concept]) -> None:
    scenes = make_scenes(concepts, seed=0)
    assert len(scenes) == SCENES and scenes == make_scenes(concepts, seed=0) != make_scenes(concepts, seed=1)
    shown = {scene.file: {concept.name for concept in scene.concepts} for scene in scenes}
    for rows in question_rows(scenes, seed=0).values():
        assert len(rows) == 2 * PRESENT * SCENES
        for row in rows:
            name = row["text"].removeprefix("does the image show ").rstrip("?").split()[-1]
            assert (name in shown[row["image"]]) == (row["label"] == "yes")
        assert [row["label"] for row in rows[:4]] == ["yes", "no", "yes", "no"]


def test_negatives_are_frequent_or_keep_company(concepts: list[Concept]) -> None:
    import random

    scenes = make_scenes(concepts, seed=0)
    frequency = Counter(concept for scene in scenes for concept in scene.concepts)
    means = dict.fromkeys(("adversarial", "popular", "random"), 0.0)
    company = dict(means)
    for scene in scenes:
        for name, chosen in absent(scene, scenes, random.Random(0)).items():
            assert not set(chosen) & set(scene.concepts)
            means[name] += sum(frequency[concept] for concept in chosen)
            company[name] += sum(
                len(set(other.concepts) & set(scene.concepts))
                for other in scenes
                for concept in chosen
                if concept in other.concepts
            )
    assert means["popular"] > means["adversarial"] > means["random"]
    assert company["adversarial"] > company["popular"] > company["random"]


def test_it_reads_and_scores_as_pope_does(concepts: list[Concept], tmp_path: Path) -> None:
    import json

    count = write_benchmark(tmp_path, Paper(), concepts, 0, lambda *_: None)  # type: ignore[arg-type]
    benchmark = BENCHMARKS["emoji_pope"]
    folder = benchmark.folder(tmp_path)
    asked = benchmark.read(folder)
    assert count == SCENES and len(asked.items) == 3 * 2 * PRESENT * SCENES
    assert asked.items[0].image.is_file()
    answers = tmp_path / "answers.jsonl"
    rows = [{"question_id": item.id, "text": ("yes", "no")[n % 2]} for n, item in enumerate(asked.items)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score("emoji_pope", answers, folder).figures["f1"] == 100
