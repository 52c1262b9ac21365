"""A POPE-shaped benchmark: one emoji a picture, and questions about what it shows and what it does not.

As POPE (Li et al. 2023, arXiv 2305.10355) does with COCO: half of the questions ask for what is there, half for what is
not. What is not there comes from all things (random), from those that most drawings bear the name of (popular), or from
the neighbours of what is there in Unicode's table (adversarial), which stand in for what COCO often shows beside it.
"""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from moe_llava.data.demo.concepts import Concept, differ, distractors
from moe_llava.data.demo.drawings import Style
from moe_llava.data.demo.files import Progress, write_lines, write_png
from moe_llava.data.demo.words import with_article

FOLDER = "emoji_pope"
SETS = ("adversarial", "popular", "random")
MOST_PICTURES = 500
POPULAR = 20  # names


def absent(shown: Sequence[Concept], concepts: Sequence[Concept], rng: random.Random) -> dict[str, list[Concept]]:
    """Set -> for each shown concept one that its picture does not show, chosen from `concepts`."""
    near = distractors(concepts, rng)
    bearers = Counter(concept.name for concept in concepts)
    names = {name for name, _ in sorted(bearers.items(), key=lambda item: (-item[1], item[0]))[:POPULAR]}
    popular = [concept for concept in concepts if concept.name in names]

    def unlike(concept: Concept, among: Sequence[Concept]) -> Concept:
        return rng.choice([other for other in among if differ(concept, other)])

    return {
        "adversarial": [near[concept.code] for concept in shown],
        "popular": [unlike(concept, popular) for concept in shown],
        "random": [unlike(concept, concepts) for concept in shown],
    }


def question_rows(shown: Sequence[Concept], concepts: Sequence[Concept], seed: int) -> dict[str, list[dict]]:
    """Set -> rows `{"question_id", "image", "text", "label"}`, yes and no in turn."""
    rows: dict[str, list[dict]] = {}
    for name, missing in absent(shown, concepts, random.Random(f"{FOLDER} asked {seed}")).items():
        asked = [
            (concept, one, label)
            for concept, other in zip(shown, missing, strict=True)
            for one, label in ((concept, "yes"), (other, "no"))
        ]
        rows[name] = [
            {
                "question_id": number,
                "image": f"{concept.code}.png",
                "text": f"does the image show {with_article(one.name)}?",
                "label": label,
            }
            for number, (concept, one, label) in enumerate(asked, start=1)
        ]
    return rows


def write_benchmark(folder: Path, style: Style, concepts: Sequence[Concept], seed: int, report: Progress) -> int:
    """Write pictures, questions and labels in POPE's own layout; returns the number of pictures."""
    shown = random.Random(f"{FOLDER} {seed}").sample(list(concepts), min(MOST_PICTURES, len(concepts)))
    for done, concept in enumerate(shown, start=1):
        target = folder / FOLDER / "val2014" / f"{concept.code}.png"
        if not target.exists():
            write_png(target, style.picture(concept.code))
        report("emoji-POPE images", done, len(shown))
    rows = question_rows(shown, concepts, seed)
    for name, of in rows.items():
        write_lines(folder / FOLDER / "coco" / f"coco_pope_{name}.json", of)
    asked = [(name, row) for name, of in rows.items() for row in of]
    questions = [
        {"question_id": number, "image": row["image"], "text": row["text"], "category": name}
        for number, (name, row) in enumerate(asked, start=1)
    ]
    write_lines(folder / FOLDER / "llava_pope_test.jsonl", questions)
    return len(shown)
