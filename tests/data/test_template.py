"""One template string writes the prompt, marks what is supervised, and agrees with the original."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from moe_llava.data import TEMPLATES, Message, Segment, render, resolve_template, train_tokenizer

QUESTION, ANSWER = Message("user", "<image>\nHi?"), Message("assistant", "Yes.")
ONE_TURN = [QUESTION, ANSWER]
CHATML_OWN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def supervised(segments: list[Segment]) -> list[str]:
    return [segment.text for segment in segments if segment.supervised]


def text(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


@pytest.mark.parametrize(("name", "recorded"), [("vicuna", "v1"), *((n, n) for n in ("phi", "qwen", "stablelm"))])
def test_prompts_are_the_original_s(name: str, recorded: str, golden: Callable[[str], Any]) -> None:
    prompts = golden("prompts.json")[recorded]
    two_turns = [*ONE_TURN, Message("user", "And?")]
    for eos in ({}, {"eos_token": prompts["sep2"]}):
        open_prompt = {"add_generation_prompt": True, "special_tokens": eos}
        assert text(render([QUESTION], TEMPLATES[name], **open_prompt)) == prompts["one"]
        assert text(render(two_turns, TEMPLATES[name], **open_prompt)) == prompts["two"]


@pytest.mark.parametrize(
    ("name", "answer"),
    [("plain", "Yes.\n"), ("vicuna", " Yes.</s>"), ("phi", " Yes.<|endoftext|>"), ("chatml", "Yes.<|im_end|>")],
)
def test_answer_and_end_mark_are_supervised(name: str, answer: str) -> None:
    assert supervised(render(ONE_TURN, TEMPLATES[name], special_tokens={})) == [answer]


def test_every_answer_of_a_dialogue_is_supervised() -> None:
    segments = render(
        [*ONE_TURN, Message("user", "And?"), Message("assistant", "No.")], TEMPLATES["vicuna"], special_tokens={}
    )
    assert [segment.supervised for segment in segments] == [False, True, False, True]
    assert supervised(segments) == [" Yes.</s>", " No.</s>"]


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"plain"}))
def test_training_text_begins_with_the_generation_prompt(name: str) -> None:
    prompt = render([QUESTION], TEMPLATES[name], add_generation_prompt=True, special_tokens={})
    assert text(render(ONE_TURN, TEMPLATES[name], special_tokens={})).startswith(text(prompt))


def test_end_mark_is_the_tokenizer_s_own() -> None:
    assert supervised(render(ONE_TURN, TEMPLATES["vicuna"], special_tokens={"eos_token": "<end>"})) == [" Yes.<end>"]


@pytest.mark.parametrize("name", ["vicuna", "chatml"])
def test_a_system_turn_replaces_the_default(name: str) -> None:
    rendered = text(render([Message("system", "Be brief."), *ONE_TURN], TEMPLATES[name], special_tokens={}))
    assert "Be brief." in rendered
    assert "assistant gives" not in rendered
    assert "  " not in text(render([Message("system", ""), *ONE_TURN], TEMPLATES[name], special_tokens={}))


def test_chatml_text() -> None:
    rendered = text(render([Message("system", "S"), *ONE_TURN], TEMPLATES["chatml"], special_tokens={}))
    assert rendered == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<image>\nHi?<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n"
    )


def test_plain_is_images_then_caption() -> None:
    chat = [Message("user", "Describe <image> and\n<image>."), ANSWER]
    assert text(render(chat, TEMPLATES["plain"], special_tokens={})) == "<image><image>Yes.\n"
    prompt = render(chat[:1], TEMPLATES["plain"], add_generation_prompt=True, special_tokens={})
    assert text(prompt) == "<image><image>"


@pytest.mark.parametrize(
    ("name", "chat"),
    [
        ("plain", [Message("user", "no image"), ANSWER]),
        ("plain", ONE_TURN * 2),
        ("plain", [Message("system", "S"), ANSWER]),
        ("vicuna", [QUESTION, Message("system", "S")]),
        ("chatml", [QUESTION, Message("system", "S")]),
        ("vicuna", [{"role": "user", "content": [{"type": "video"}]}]),
    ],
)
def test_what_a_template_cannot_write_is_refused(name: str, chat: list) -> None:
    with pytest.raises(ValueError, match="refuses this conversation"):
        render(chat, TEMPLATES[name], special_tokens={})


@pytest.mark.parametrize("name", TEMPLATES)
def test_parts_read_as_text_with_markers(name: str) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "Hi?"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}]
    assert render(chat, TEMPLATES[name], special_tokens={}) == render(ONE_TURN, TEMPLATES[name], special_tokens={})


def test_a_template_without_marks_is_supervised_by_difference() -> None:
    segments = render([*ONE_TURN, Message("user", "And?"), ANSWER], CHATML_OWN, special_tokens={})
    assert supervised(segments) == ["Yes.<|im_end|>\n"] * 2
    assert text(segments).endswith("<|im_start|>assistant\nYes.<|im_end|>\n")


def test_a_template_that_rewrites_history_is_refused() -> None:
    rewriting = "{{ messages | length }}" + CHATML_OWN
    with pytest.raises(ValueError, match=r"changes earlier text.*generation"):
        render(ONE_TURN, rewriting, special_tokens={})


def test_resolve_names_files_and_text(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert resolve_template("vicuna", tokenizer) == TEMPLATES["vicuna"]
    path = tmp_path / "own.jinja"
    path.write_text(CHATML_OWN)
    from_file, from_text = resolve_template(str(path), None), resolve_template(CHATML_OWN, None)
    assert from_file == from_text == resolve_template(from_text, None)
    chat = [{"role": "user", "content": [{"type": "image"}]}]
    assert text(render(chat, from_text, special_tokens={})) == "<|im_start|>user\n<image><|im_end|>\n"


def test_resolve_the_tokenizer_s_own() -> None:
    tokenizer = train_tokenizer(["a"], 259)
    tokenizer.chat_template = CHATML_OWN
    assert resolve_template(None, tokenizer) == resolve_template("tokenizer", tokenizer)
    assert resolve_template("tokenizer", tokenizer).endswith(CHATML_OWN)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("vicunia", "choose one of plain, vicuna"),
        ("gone.jinja", "correct the path"),
        ("tokenizer", "choose one of plain"),
        (None, "choose one of plain"),
        ("chatml", "choose 'vicuna'"),
    ],
)
def test_resolve_errors_name_the_remedy(name: str | None, remedy: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=remedy):
        resolve_template(name, tokenizer)
