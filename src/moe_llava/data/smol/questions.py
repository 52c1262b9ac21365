"""Pictures and facts -> captions, conversations to learn from, and tests."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from moe_llava.data.demo.concepts import Concept, differ, distractors
from moe_llava.data.demo.files import conversation
from moe_llava.data.demo.words import is_plural, kind_with_article, kinds_apart, with_article

WHAT = ("What is this?", "What does the picture show?", "What do you see?")
KIND = ("What kind of thing is it?", "What kind of thing is this?")
COLOUR = ("What color is it?", "Which colors does it have?")
KEYWORDS = ("Which words go with it?", "What does it make you think of?")
DEFINITION = ("What does a dictionary say about it?", "Explain what it is.")
SENTENCE = ("Write one sentence about it.", "Say something about it in one sentence.")
# A question about a thing's kind, and the kinds of which it is true.
KINDS_ASKED = (
    ("Is it something to eat?", {"food"}),
    ("Is it something to drink?", {"drink"}),
    ("Is it an animal?", {"animal"}),
    ("Is it alive?", {"animal", "plant"}),
    ("Can you ride in it?", {"vehicle"}),
    ("Is it something to wear?", {"clothing"}),
    ("Does it make music?", {"instrument"}),
    ("Is it a place?", {"place"}),
)
_GUESSES = 3  # at most, in one conversation

Turn = tuple[str, str]


@dataclass(frozen=True)
class Shown:
    """One picture: its file, what it shows, and what can be said of that."""

    path: str
    concept: Concept
    colours: tuple[str, ...]
    keywords: tuple[str, ...]
    definition: str | None


def sentence(text: str) -> str:
    """Upper case in front, a full stop behind."""
    return f"{text[:1].upper()}{text[1:]}."


def name_and_kind(concept: Concept) -> str:
    """ "a fox: an animal" """
    return f"{with_article(concept.name)}: {kind_with_article(concept.kind, concept.name)}"


def caption(shown: Shown) -> str:
    """ "A fox: an animal, orange and white." """
    return sentence(f"{name_and_kind(shown.concept)}, {' and '.join(shown.colours)}")


def what_turn(shown: Shown, rng: random.Random) -> Turn:
    return rng.choice(WHAT), sentence(with_article(shown.concept.name))


def kind_turn(shown: Shown, rng: random.Random) -> Turn:
    return rng.choice(KIND), sentence(kind_with_article(shown.concept.kind, shown.concept.name))


def colour_turn(shown: Shown, rng: random.Random) -> Turn:
    return rng.choice(COLOUR), sentence(" and ".join(shown.colours))


def yes_no_turn(asked: Concept, right: bool) -> Turn:
    be = "Are these" if is_plural(asked.name) else "Is this"
    return f"{be} {with_article(asked.name)}?", "Yes." if right else "No."


def kind_asked_turn(shown: Shown, rng: random.Random) -> Turn | None:
    """Yes or no to a question about its kind, as often the one as the other; `None` where nothing is certain."""
    kind = shown.concept.kind
    yes = [question for question, kinds in KINDS_ASKED if kind in kinds]
    no = [question for question, kinds in KINDS_ASKED if kinds.isdisjoint({kind}) and kinds <= set(kinds_apart(kind))]
    if yes and (not no or rng.random() < 0.5):
        return rng.choice(yes), "Yes."
    return (rng.choice(no), "No.") if no else None


def said_turns(shown: Shown, rng: random.Random) -> list[Turn]:
    """What is said freely: keywords, a definition, a sentence; those that there are."""
    turns: list[Turn] = []
    if shown.keywords:
        turns.append((rng.choice(KEYWORDS), sentence(", ".join(shown.keywords))))
    if shown.definition:
        turns.append((rng.choice(DEFINITION), sentence(shown.definition)))
        noun = with_article(shown.concept.name)
        be = "are" if is_plural(shown.concept.name) else "is"
        turns.append((rng.choice(SENTENCE), sentence(f"{noun} {be} {shown.definition}")))
    return turns


def caption_records(pictures: Sequence[Shown]) -> list[dict]:
    """A picture, what it is, of what kind, and its colours."""
    return [conversation(f"caption/{one.path}", [("", caption(one))], one.path) for one in pictures]


def name_records(pictures: Sequence[Shown]) -> list[dict]:
    """Stage I: a picture, what it is and of what kind; one text for each thing."""
    named = [(one, sentence(name_and_kind(one.concept))) for one in pictures]
    return [conversation(f"name/{one.path}", [("", text)], one.path) for one, text in named]


def instruction_records(pictures: Sequence[Shown], seed: str) -> list[dict]:
    """One conversation a picture: what, kind and colour in any order; or is it this, or that; or what is said freely.

    In a third of the conversations that ask for a yes or a no the name comes first: to compare it with what is asked
    is learned in words, then without them.
    """
    rng = random.Random(f"smol {seed}")
    concepts = list(dict.fromkeys(one.concept for one in pictures))
    wrong = [distractors(concepts, rng) for _ in range(_GUESSES)]
    far = {concept.code: [other for other in concepts if differ(concept, other)] for concept in concepts}
    records = []
    for one in pictures:
        # Half of what is asked for wrongly is near, half is anything: a comparison is learned on what differs most.
        code = one.concept.code
        others = [near[code] if rng.random() < 0.5 else rng.choice(far[code]) for near in wrong]
        records.append(conversation(f"{seed}/{one.path}", _turns(one, others, rng), one.path))
    return records


def guess_turns(concept: Concept, others: Sequence[Concept], rng: random.Random) -> list[Turn]:
    """Yes or no to a name, until the first yes or as often as there are others: at each turn either is as likely."""
    turns = []
    for other in others:
        right = rng.random() < 0.5
        turns.append(yes_no_turn(concept if right else other, right))
        if right:
            break
    return turns


def _turns(shown: Shown, others: Sequence[Concept], rng: random.Random) -> list[Turn]:
    drawn = rng.random()
    if drawn < 0.45:
        guesses = guess_turns(shown.concept, others, rng)
        return [what_turn(shown, rng), *guesses] if rng.random() < 1 / 3 else guesses
    asked = kind_asked_turn(shown, rng)
    if drawn < 0.53 and asked:
        return [asked]
    said = said_turns(shown, rng)
    if drawn < 0.63 and said:
        return [rng.choice(said)]
    turns = [what_turn(shown, rng), kind_turn(shown, rng), colour_turn(shown, rng)]
    rng.shuffle(turns)
    return turns + ([rng.choice(said)] if said and rng.random() < 0.25 else [])


def test_rows(pictures: Sequence[Shown], seed: str) -> list[dict]:
    """Four questions a picture: `id`, `image`, `question`, `answer`, `kind`, `accepted`. Half of the yes/no are yes.

    Distractors come from the same concepts, so that no word by itself says no.
    """
    rng = random.Random(f"smol test {seed}")
    concepts = list(dict.fromkeys(one.concept for one in pictures))
    wrong = distractors(concepts, rng)
    right = {one.path for one in rng.sample(list(pictures), (len(pictures) + 1) // 2)}
    rows = []
    for one in pictures:
        yes = one.path in right
        asked = one.concept if yes else wrong[one.concept.code]
        turns = {
            "name": (WHAT[0], what_turn(one, rng)[1]),
            "category": (KIND[0], kind_turn(one, rng)[1]),
            "yes_no": yes_no_turn(asked, yes),
            "colour": (COLOUR[0], colour_turn(one, rng)[1]),
        }
        for kind, (question, answer) in turns.items():
            accepted = list(_names(one.concept)) if kind == "name" else [answer]
            facts = {"id": f"{one.path}/{kind}", "image": one.path, "question": question, "answer": answer}
            rows.append(facts | {"kind": kind, "accepted": accepted})
    return rows


def _names(concept: Concept) -> tuple[str, ...]:
    """Every accepted name, with and without its article."""
    return tuple(dict.fromkeys(form for name in concept.accepted for form in (with_article(name), name)))
