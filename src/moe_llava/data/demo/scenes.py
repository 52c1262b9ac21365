"""A POPE-shaped benchmark: pictures of several emoji, and questions about what is there and what is not.

As POPE (Li et al. 2023, arXiv 2305.10355) does with COCO: half of a picture's questions ask for things that are there,
half for things that are not, which come from all things (random), from the most frequent (popular), or from those that
most often stand beside what is there (adversarial).
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from moe_llava.data.demo.concepts import Concept, differ
from moe_llava.data.demo.drawings import SIDE, Style
from moe_llava.data.demo.files import Progress, write_lines, write_png
from moe_llava.data.demo.words import with_article

FOLDER = "emoji_pope"
SETS = ("adversarial", "popular", "random")
POOL = 60
SCENES = 150
PRESENT = 3
_SAME_KIND = 0.6


@dataclass(frozen=True)
class Scene:
    """A picture of some concepts in the four quarters of a square."""

    number: int
    concepts: tuple[Concept, ...]
    quarters: tuple[int, ...]

    @property
    def file(self) -> str:
        return f"scene_{self.number:03d}.png"

    def draw(self, style: Style) -> Image.Image:
        canvas = Image.new("RGB", (2 * SIDE, 2 * SIDE), "white")
        for concept, quarter in zip(self.concepts, self.quarters, strict=True):
            canvas.paste(style.picture(concept.code), (quarter % 2 * SIDE, quarter // 2 * SIDE))
        return canvas


def make_scenes(concepts: Sequence[Concept], seed: int) -> list[Scene]:
    """Scenes of things from a small pool, some more frequent than others, those of one kind often together."""
    rng = random.Random(f"scenes {seed}")
    pool: list[Concept] = []
    for concept in rng.sample(list(concepts), len(concepts)):
        if len(pool) < POOL and all(differ(concept, other) for other in pool):
            pool.append(concept)
    weights = {concept: 1 / (rank + 5) for rank, concept in enumerate(pool)}
    return [Scene(number, _choose(weights, rng), tuple(rng.sample(range(4), PRESENT))) for number in range(SCENES)]


def _choose(weights: dict[Concept, float], rng: random.Random) -> tuple[Concept, ...]:
    chosen: list[Concept] = []
    while len(chosen) < PRESENT:
        left = [concept for concept in weights if concept not in chosen]
        kin = [concept for concept in left if chosen and concept.kind == chosen[0].kind]
        among = kin if kin and rng.random() < _SAME_KIND else left
        chosen += rng.choices(among, [weights[concept] for concept in among])
    return tuple(chosen)


def absent(scene: Scene, scenes: Sequence[Scene], rng: random.Random) -> dict[str, list[Concept]]:
    """Set -> as many things that are not in the scene as there are things in it."""
    count = len(scene.concepts)
    frequency = Counter(concept for one in scenes for concept in one.concepts)
    company = Counter(concept for one in scenes if set(one.concepts) & set(scene.concepts) for concept in one.concepts)
    others = sorted((concept for concept in frequency if concept not in scene.concepts), key=lambda one: one.code)
    return {
        "adversarial": sorted(others, key=lambda concept: -company[concept])[:count],
        "popular": sorted(others, key=lambda concept: -frequency[concept])[:count],
        "random": rng.sample(others, count),
    }


def question_rows(scenes: Sequence[Scene], seed: int) -> dict[str, list[dict]]:
    """Set -> rows `{"question_id", "image", "text", "label"}`, yes and no in turn."""
    rng = random.Random(f"scenes asked {seed}")
    rows: dict[str, list[dict]] = {name: [] for name in SETS}
    for scene in scenes:
        for name, missing in absent(scene, scenes, rng).items():
            for present, other in zip(scene.concepts, missing, strict=True):
                for concept, label in ((present, "yes"), (other, "no")):
                    text = f"does the image show {with_article(concept.name)}?"
                    rows[name].append(
                        {"question_id": len(rows[name]) + 1, "image": scene.file, "text": text, "label": label}
                    )
    return rows


def write_benchmark(folder: Path, style: Style, concepts: Sequence[Concept], seed: int, report: Progress) -> int:
    """Write pictures, questions and labels in POPE's own layout; returns the number of pictures."""
    scenes = make_scenes(concepts, seed)
    for done, scene in enumerate(scenes, start=1):
        target = folder / FOLDER / "val2014" / scene.file
        if not target.exists():
            write_png(target, scene.draw(style))
        report("emoji scenes", done, len(scenes))
    rows = question_rows(scenes, seed)
    for name, of in rows.items():
        write_lines(folder / FOLDER / "coco" / f"coco_pope_{name}.json", of)
    asked = [{**row, "category": name} for name, of in rows.items() for row in of]
    questions = [
        {"question_id": number, "image": row["image"], "text": row["text"], "category": row["category"]}
        for number, row in enumerate(asked, start=1)
    ]
    write_lines(folder / FOLDER / "llava_pope_test.jsonl", questions)
    return len(scenes)
