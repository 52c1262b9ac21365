"""`data check` counts and complains; `data preview` shows what is learned, without colour too."""

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from moe_llava.data import Conversation, Message, MoeLlavaProcessor, check, preview

Picture = Callable[..., Path]
Ask = Callable[..., Conversation]


def items(*pairs: tuple[str, str], image: str | None = None) -> list[dict]:
    found = []
    for question, answer in pairs:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        found.append({"conversations": turns} | ({"image": image} if "<image>" in question else {}))
    return found


def supervised(text: Text) -> str:
    """What is underlined."""
    styles = [(span.start, span.end) for span in text.spans if getattr(span.style, "underline", False)]
    return "".join(text.plain[start:end] for start, end in styles)


def test_check_counts(tmp_path: Path, picture: Picture) -> None:
    picture("red")
    path = tmp_path / "train.json"
    path.write_text(json.dumps(items(("<image>", "A."), ("Hello", "Hi."), ("Empty", ""), image="red.png")))
    report = check(path)
    assert (report.conversations, report.images, report.text_only, report.turns) == (2, 1, 1, 4)
    assert not report.ok
    assert "train.json:1: conversations[1]: empty answer" in report.text()


def test_check_with_a_processor_finds_what_cannot_be_encoded(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, image_processor: CLIPImageProcessor
) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(items(("Hello", "Hi."), ("long " * 200, "Hi."))))
    assert check(path).ok
    report = check(path, processor=MoeLlavaProcessor(image_processor, tokenizer, "vicuna", 4, model_max_length=400))
    assert report.conversations == 1
    assert "exceed model_max_length" in report.problems[0].message
    assert report.longest is not None
    assert f"longest: {report.longest} tokens" in report.text()


def test_preview_with_a_processor(processor: MoeLlavaProcessor, ask: Ask, picture: Picture) -> None:
    shown = preview(ask("<image>\nWhat?", "A cat.\nYes.", picture("red")), processor)
    assert supervised(shown) == "·A cat.⏎\nYes.</s>"
    assert "USER: " in shown.plain.replace("·", " ")
    assert "<image> x 4⏎\nWhat?" in shown.plain
    tokens = processor.encode([Message("user", "<image>\nWhat?"), Message("assistant", "A cat.\nYes.")], 1)
    learned = sum(label != -100 for label in tokens["labels"])
    assert shown.plain.endswith(f"[{len(tokens['labels'])} tokens, {learned} supervised, 1 images]")


def test_preview_with_a_template_alone(ask: Ask, tokenizer: PreTrainedTokenizerFast) -> None:
    conversation = ask("<image>\nWhat?", "A cat.")
    assert supervised(preview(conversation, "phi")) == "·A cat.<|endoftext|>"
    assert supervised(preview(conversation, ("phi", None))) == "·A cat.<|endoftext|>"
    assert supervised(preview(conversation, ("phi", tokenizer))) == "·A cat.</s>"


def test_supervision_shows_without_colour(ask: Ask) -> None:
    console = Console(no_color=True, force_terminal=True, width=200, color_system="truecolor")
    with console.capture() as capture:
        console.print(preview(ask("Hello", "Hi."), "vicuna"))
    assert "\x1b[1;4m·Hi.</s>\x1b[0m" in capture.get()


def test_characters_that_cannot_be_seen_are_shown(ask: Ask) -> None:
    shown = preview(ask("a\tb\u200b\u00a0c", "x "), "chatml").plain
    assert "a⇥b\\u200b\\u00a0c⏎" not in shown  # the turn ends with its mark, not with a new line
    assert "a⇥b\\u200b\\u00a0c<|im_end|>⏎" in shown
