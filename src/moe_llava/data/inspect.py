"""`data check` and `data preview`: what is in a file, what is wrong with it, and what a model sees of it."""

import unicodedata
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.style import Style
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from moe_llava.data.conversation import IMAGE_TOKEN, Conversation, scan
from moe_llava.data.problems import Problem
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.data.template import Segment, render, resolve_template
from moe_llava.data.tokens import tokenize

SUPERVISED = Style(bold=True, underline=True, color="green")  # told apart without colour, too
READ = Style()
IMAGE = Style(reverse=True)
SIGN = Style(dim=True)


@dataclass(frozen=True)
class CheckReport:
    """What a data file holds. Counts are of the sound conversations; `longest` is in tokens, with a processor."""

    path: str
    conversations: int
    images: int
    text_only: int
    turns: int
    problems: list[Problem] = field(default_factory=list)
    longest: int | None = None

    @property
    def ok(self) -> bool:
        """Whether every conversation can be trained on."""
        return not self.problems

    def text(self) -> str:
        """The report as lines of text: counts, then every problem."""
        counts = [
            f"{self.conversations} conversations with {self.turns} turns",
            f"{self.images} images, {self.text_only} conversations without",
        ]
        if self.longest is not None:
            counts.append(f"longest: {self.longest} tokens")
        return "\n".join([self.path, *counts, f"{len(self.problems)} problems", *map(str, self.problems)])


def check(
    path: str | Path,
    image_folder: str | Path | None = None,
    processor: MoeLlavaProcessor | None = None,
    check_images: bool = False,
) -> CheckReport:
    """Count a data file and collect all its problems.

    Args:
        path: LLaVA JSON or messages JSON Lines.
        image_folder: where relative image paths start; the file's folder if not given.
        processor: also encode each conversation, to find those that are too long or have nothing supervised.
        check_images: also decode every image completely.
    """
    conversations, problems = scan(path, image_folder, check_images)
    longest = None
    if processor is not None:
        conversations, unusable, longest = _encodable(conversations, processor)
        problems = problems + unusable
    return CheckReport(
        path=str(path),
        conversations=len(conversations),
        images=sum(len(conversation.images) for conversation in conversations),
        text_only=sum(not conversation.images for conversation in conversations),
        turns=sum(len(conversation.messages) for conversation in conversations),
        problems=problems,
        longest=longest,
    )


def preview(
    conversation: Conversation, target: MoeLlavaProcessor | str | tuple[str, PreTrainedTokenizerBase | None]
) -> Text:
    """The text a model sees: supervised text is bold, underlined and green; special characters are visible.

    Args:
        conversation: what to show.
        target: a processor; or a template (name, file or Jinja), alone or with a tokenizer. With a tokenizer
            the supervised characters are those of the supervised tokens, without one those of the template.

    Raises:
        ValueError: as `MoeLlavaProcessor.encode` or `render`.
    """
    if isinstance(target, str):
        return _preview_segments(conversation, target, None)
    if isinstance(target, tuple):
        return _preview_segments(conversation, *target)
    return _preview_tokens(conversation, target)


def _preview_segments(conversation: Conversation, template: str, tokenizer: PreTrainedTokenizerBase | None) -> Text:
    special_tokens = tokenizer.special_tokens_map if tokenizer is not None else {}
    segments = render(conversation.messages, resolve_template(template, tokenizer), special_tokens=special_tokens)
    if tokenizer is not None:
        tokens = tokenize([segments], tokenizer)[0]
        segments = _regroup(tokens.text, tokens.spans[tokens.supervised])
    return _paint(segments, IMAGE_TOKEN, IMAGE_TOKEN)


def _encodable(
    conversations: list[Conversation], processor: MoeLlavaProcessor
) -> tuple[list[Conversation], list[Problem], int | None]:
    sound, problems, lengths = [], [], []
    for conversation in conversations:
        try:
            encoded = processor.encode(conversation.messages, len(conversation.images))
        except ValueError as error:
            problems.append(Problem(conversation.source, "messages", str(error)))
            continue
        sound.append(conversation)
        lengths.append(len(encoded["input_ids"]))
    return sound, problems, max(lengths, default=None)


def _preview_tokens(conversation: Conversation, processor: MoeLlavaProcessor) -> Text:
    tokens = processor.tokenize([processor.render(conversation.messages)])[0]
    processor.check(tokens, len(conversation.images))
    shown_image = f"{processor.image_token} x {processor.image_seq_length}"
    text = _paint(_regroup(tokens.text, tokens.spans[tokens.supervised]), processor.image_token, shown_image)
    counts = f"{processor.length(tokens)} tokens, {int(tokens.supervised.sum())} supervised"
    return text.append(f"\n[{counts}, {len(conversation.images)} images]", SIGN)


def _regroup(text: str, spans: np.ndarray) -> list[Segment]:
    """Segments by the characters that supervised tokens cover."""
    marked = np.zeros(len(text) + 1, dtype=bool)
    for start, end in spans:
        marked[start:end] = True
    edges = [0, *(np.flatnonzero(np.diff(marked[:-1])) + 1).tolist(), len(text)]
    return [Segment(text[start:end], bool(marked[start])) for start, end in pairwise(edges) if start < end]


def _paint(segments: list[Segment], image_token: str, shown_image: str) -> Text:
    painted = Text()
    for segment in segments:
        style = SUPERVISED if segment.supervised else READ
        for number, piece in enumerate(segment.text.split(image_token)):
            if number:
                painted.append(shown_image, IMAGE)
            painted.append(_visible(piece), style)
    return painted


def _visible(text: str) -> str:
    """White space and characters that cannot be seen get a sign: ⏎ ⇥ ·, or their code."""
    shown = "".join(_sign(character) for character in text)
    start = len(shown) - len(shown.lstrip(" "))
    end = len(shown.rstrip(" "))
    return "·" * start + shown[start:end] + "·" * (len(shown) - max(start, end))


def _sign(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character == "\t":
        return "⇥"
    if character != " " and unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp", "Co", "Cs"):
        return f"\\u{ord(character):04x}"
    return character
