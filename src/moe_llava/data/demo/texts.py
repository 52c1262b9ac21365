"""Words without pictures for the language model, and captions for the projector."""

import random
from collections import defaultdict
from collections.abc import Sequence

from moe_llava.data.demo import easy_vqa, emoji
from moe_llava.data.demo.concepts import Concept
from moe_llava.data.demo.files import conversation
from moe_llava.data.demo.words import be, kind_with_article, kinds_apart, with_article

_TURNS = 4
_CAPTION_REQUEST = "describe the image."


def emoji_caption(concept: Concept) -> str:
    """ "a fox, an animal"."""
    return f"{with_article(concept.name)}, {kind_with_article(concept.kind, concept.name)}"


def caption_records(
    questions: Sequence[easy_vqa.Question], styles: Sequence[str], concepts: Sequence[Concept]
) -> list[dict]:
    """Image-caption pairs: the human shows an image and says nothing. Paths are relative to the demo's folder."""
    shapes = [
        conversation(f"caption/easy_vqa/{image}", [("", text)], f"easy_vqa/{easy_vqa.image_path('train', image)}")
        for image, text in easy_vqa.captions(questions).items()
    ]
    drawings = [
        conversation(
            f"caption/emoji/{style}/{concept.code}",
            [("", emoji_caption(concept))],
            f"emoji/{emoji.image_path(style, concept)}",
        )
        for style in styles
        for concept in concepts
    ]
    return shapes + drawings


def language_records(
    questions: Sequence[easy_vqa.Question], seen: Sequence[Concept], held_out: Sequence[Concept], seed: int
) -> list[dict]:
    """Conversations without an image, which teach words, facts and the form of question and answer.

    Args:
        questions: easy-VQA's training questions.
        seen: concepts to speak of as if their picture were shown, and to state facts about.
        held_out: concepts to state facts about only; empty to keep them a secret.
        seed: of every choice.
    """
    rng = random.Random(f"language {seed}")
    conversations = [
        *_guesses(questions, rng),
        *([(_CAPTION_REQUEST, text)] for text in easy_vqa.captions(questions).values() if rng.random() < 0.1),
        *([(_CAPTION_REQUEST, emoji_caption(concept))] for concept in seen),
        *_unseen_pictures(seen, rng),
        *_facts([*seen, *held_out], rng),
    ]
    rng.shuffle(conversations)
    return [conversation(f"language/{number}", turns) for number, turns in enumerate(conversations)]


def _guesses(questions: Sequence[easy_vqa.Question], rng: random.Random) -> list[list[emoji.Turn]]:
    """easy-VQA's questions with answers drawn from those the same question has: all that can be known blindly.

    Each answer is drawn by itself, so that no turn can be read off an earlier one.
    """
    answers: dict[str, list[str]] = defaultdict(list)
    for question in questions:
        answers[question.text].append(question.answer)
    asked = [question.text for question in questions]
    rng.shuffle(asked)
    asked = asked[: len(asked) // 3]
    turns = [(text, rng.choice(answers[text])) for text in asked]
    return [turns[start : start + _TURNS] for start in range(0, len(turns), _TURNS)]


def _unseen_pictures(concepts: Sequence[Concept], rng: random.Random) -> list[list[emoji.Turn]]:
    """Name and kind agree with each other; whether "is this ...?" is right, nobody can know."""
    conversations = []
    for concept in concepts:
        both = [emoji.name_turn(concept, rng), emoji.kind_turn(concept, rng)]
        rng.shuffle(both)
        conversations += [both, [emoji.yes_no_turn(concept, rng.random() < 0.5, rng)]]
    return conversations


def _facts(concepts: Sequence[Concept], rng: random.Random) -> list[list[emoji.Turn]]:
    """ "what kind of thing is a fox?" -> "animal"; "is a fox an animal?" -> "yes"; "is a fox a place?" -> "no"."""
    conversations = []
    for name, kind in {concept.name: concept.kind for concept in concepts}.items():
        noun = with_article(name)
        conversations.append([(f"what kind of thing {be(name)} {noun}?", kind)])
        if kinds_apart(kind):
            other = rng.choice(kinds_apart(kind))
            conversations.append([(f"{be(name)} {noun} {kind_with_article(kind, name)}?", "yes")])
            conversations.append([(f"{be(name)} {noun} {kind_with_article(other, name)}?", "no")])
    return conversations
