"""Emoji pictures -> conversations to learn from, and three tests: unseen style, unseen concept, both unseen."""

import random
from collections import Counter
from collections.abc import Sequence

from moe_llava.data.demo.concepts import Concept, distractors
from moe_llava.data.demo.files import conversation
from moe_llava.data.demo.words import is_plural, with_article

NAME_QUESTIONS = ("what is this?", "what does the image show?", "what is in the image?")
KIND_QUESTIONS = ("what kind of thing is this?", "what kind of thing does the image show?")

Turn = tuple[str, str]


def image_path(style: str, concept: Concept) -> str:
    """Path of a picture, relative to the folder of the emoji files."""
    return f"images/{style}/{concept.code}.png"


def name_turn(concept: Concept, rng: random.Random) -> Turn:
    """ "what is this?" -> "fox"."""
    return rng.choice(NAME_QUESTIONS), concept.name


def kind_turn(concept: Concept, rng: random.Random) -> Turn:
    """ "what kind of thing is this?" -> "animal"."""
    return rng.choice(KIND_QUESTIONS), concept.kind


def yes_no_turn(asked: Concept, right: bool, rng: random.Random) -> Turn:
    """ "is this a fox?" -> "yes"."""
    is_this = "are these" if is_plural(asked.name) else "is this"
    question = f"{rng.choice((is_this, 'does the image show'))} {with_article(asked.name)}?"
    return question, "yes" if right else "no"


def train_records(styles: Sequence[str], concepts: Sequence[Concept], seed: int) -> list[dict]:
    """Three conversations a picture: its name and its kind in either order; a yes; a no with a near distractor.

    A yes and a no never share a conversation: the second would follow from the first.
    """
    rng = random.Random(f"emoji train {seed}")
    records = []
    for style in styles:
        wrong = distractors(concepts, rng)
        for concept in concepts:
            both = [name_turn(concept, rng), kind_turn(concept, rng)]
            rng.shuffle(both)
            yes, no = yes_no_turn(concept, True, rng), yes_no_turn(wrong[concept.code], False, rng)
            for part, turns in enumerate((both, [yes], [no])):
                identifier = f"emoji/{style}/{concept.code}/{part}"
                records.append(conversation(identifier, turns, image_path(style, concept)))
    return records


def test_rows(styles: Sequence[str], concepts: Sequence[Concept], seed: int) -> list[dict]:
    """Three questions a picture, one of each kind: `id`, `image`, `question`, `answer`, `kind`, `accepted`.

    Half of the yes/no answers are yes. Distractors come from the same concepts, so that no word by itself says no.
    """
    rng = random.Random(f"emoji test {styles} {seed}")
    rows = []
    for style in styles:
        wrong = distractors(concepts, rng)
        right = {concept.code for concept in rng.sample(list(concepts), (len(concepts) + 1) // 2)}
        for concept in concepts:
            says_yes = concept.code in right
            asked = concept if says_yes else wrong[concept.code]
            turns = {
                "name": name_turn(concept, rng),
                "category": kind_turn(concept, rng),
                "yes_no": yes_no_turn(asked, says_yes, rng),
            }
            for kind, (question, answer) in turns.items():
                rows.append(
                    {
                        "id": f"emoji/{style}/{concept.code}/{kind}",
                        "image": image_path(style, concept),
                        "question": question,
                        "answer": answer,
                        "kind": kind,
                        "accepted": list(concept.accepted) if kind == "name" else [answer],
                    }
                )
    return rows


def chance(rows: Sequence[dict], names: int) -> dict[str, float]:
    """What a blind answer scores on `rows`: yes/no a half, category the majority's share, name one in `names`."""
    kinds = Counter(row["answer"] for row in rows if row["kind"] == "category")
    return {"name": 1 / names, "category": max(kinds.values()) / kinds.total(), "yes_no": 0.5}
