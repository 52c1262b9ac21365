"""Words without pictures for the language model, and captions for the projector."""

import random
from collections import defaultdict
from collections.abc import Sequence

from moe_llava.data.demo import easy_vqa, emoji
from moe_llava.data.demo.concepts import Concept
from moe_llava.data.demo.files import conversation
from moe_llava.data.demo.words import be, kind_with_article, kinds_apart, with_article

_TURNS = 3


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
    """Conversations without an image, in which a description stands where an image will: reading before seeing.

    They teach the words, to repeat a description, to answer what it grants, and facts about kinds of things. A decoder
    that can read "a blue rectangle" needs only a projector that makes an image read like it.

    Args:
        questions: easy-VQA's training questions.
        seen: concepts to describe and to state facts about.
        held_out: concepts to state facts about only; empty to keep them a secret.
        seed: of every choice.
    """
    rng = random.Random(f"language {seed}")
    conversations = [
        *_readings_of_shapes(questions, rng),
        *(reading for concept in seen for reading in _readings_of_concept(concept, seen, rng)),
        *_facts([*seen, *held_out], rng),
    ]
    rng.shuffle(conversations)
    return [conversation(f"language/{number}", turns) for number, turns in enumerate(conversations)]


def _read(description: str, turns: list[emoji.Turn]) -> list[emoji.Turn]:
    """The description in front of the first question, as an image would be."""
    (question, answer), *others = turns
    return [(f"{description}\n{question}".rstrip(), answer), *others]


def _readings_of_shapes(questions: Sequence[easy_vqa.Question], rng: random.Random) -> list[list[emoji.Turn]]:
    """easy-VQA's training questions, balanced, about the captions of their images; a tenth of these is repeated."""
    captions = easy_vqa.captions(questions)
    of_image: dict[int, list[emoji.Turn]] = defaultdict(list)
    for question in questions:
        of_image[question.image].append((question.text, question.answer))
    readings = []
    for image, caption in captions.items():
        if caption.endswith("shape") or len(caption.split()) < 3:
            continue  # a colour or a shape alone does not answer everything
        turns = easy_vqa.balanced(of_image[image], caption, rng)
        readings += [_read(caption, turns[start : start + _TURNS]) for start in range(0, len(turns), _TURNS)]
        if rng.random() < 0.1:
            readings.append(_read(caption, [("", caption)]))
    return readings


def _readings_of_concept(concept: Concept, concepts: Sequence[Concept], rng: random.Random) -> list[list[emoji.Turn]]:
    """Repeat a caption, name it and its kind, say yes to its name and no to another."""
    caption = emoji_caption(concept)
    other = rng.choice([one for one in concepts if one.name != concept.name])
    both = [emoji.name_turn(concept, rng), emoji.kind_turn(concept, rng)]
    rng.shuffle(both)
    yes, no = emoji.yes_no_turn(concept, True, rng), emoji.yes_no_turn(other, False, rng)
    return [_read(caption, turns) for turns in ([("", caption)], both, [yes], [no])]


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
