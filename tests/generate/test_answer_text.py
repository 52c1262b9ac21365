"""The pieces of an answer, joined, are its text; what may be half of something is held back."""

import pytest

from moe_llava.generate.answer_text import AnswerText
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from tests.tiny import Tiny

TEXT = "  A tüpfel 😀 of red, then blue. \n Done!  "


@pytest.fixture(scope="module")
def tokenizer(tiny: Tiny) -> object:
    return build_stage(load_recipe(tiny.recipe), "align")[1].tokenizer


def pieces(tokenizer: object, text: str, *stop: str) -> tuple[list[str], AnswerText]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    answer = AnswerText(tokenizer, stop)  # type: ignore[arg-type]
    out = []
    for count in range(1, len(ids) + 1):
        out.append(answer.take(ids[:count], ended=count == len(ids)))
        if answer.stopped:
            break
    return out, answer


def test_pieces_add_up_and_hold_no_half_character(tokenizer: object) -> None:
    out, answer = pieces(tokenizer, TEXT)
    assert "".join(out) == answer.text == TEXT.strip()
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in out)
    assert sum(map(bool, out)) > 5


@pytest.mark.parametrize("stop", ["then", "blue. \n", "😀", "!"])
def test_nothing_of_a_stop_string_is_shown(tokenizer: object, stop: str) -> None:
    out, answer = pieces(tokenizer, TEXT, "never", stop)
    assert answer.stopped
    assert "".join(out) == TEXT[: TEXT.index(stop)].strip()


def test_what_only_looked_like_a_stop_string_is_shown(tokenizer: object) -> None:
    out, answer = pieces(tokenizer, TEXT, "then green")
    assert not answer.stopped
    assert "".join(out) == TEXT.strip()
