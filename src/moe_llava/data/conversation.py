"""LLaVA JSON and messages JSON Lines -> `Conversation`. Every error names file, line and field."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_llava.data.images import load_image
from moe_llava.data.problems import DataError, Problem
from moe_llava.data.records import read_records

IMAGE_TOKEN = "<image>"

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn. `content` holds the marker `<image>` at each place where an image stands."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns, the images that their markers stand for, in order, and where they came from (`train.json:128`)."""

    id: str
    messages: tuple[Message, ...]
    images: tuple[Path, ...]
    source: str


def read_conversations(
    path: str | Path, image_folder: str | Path | None = None, check_images: bool = False
) -> list[Conversation]:
    """Read a whole data file: LLaVA JSON or messages JSON Lines, told apart by content.

    Args:
        path: the file. LLaVA: items with `conversations` of `{"from", "value"}` and an optional `image`.
            Messages: items with `messages` of `{"role", "content"}` and an optional `images`.
        image_folder: where relative image paths start; the data file's folder if not given.
        check_images: also decode every image completely.

    Raises:
        DataError: with all the problems of the file, if there is any.
    """
    conversations, problems = scan(path, image_folder, check_images)
    if problems:
        raise DataError(problems)
    return conversations


def scan(
    path: str | Path, image_folder: str | Path | None = None, check_images: bool = False
) -> tuple[list[Conversation], list[Problem]]:
    """As `read_conversations`, but return the sound conversations beside all problems instead of raising."""
    from moe_llava.data.parsing import Parser

    path = Path(path)
    folder = Path(image_folder) if image_folder is not None else path.parent
    records, problems = read_records(path)
    conversations = []
    decoded: dict[Path, str | None] = {}
    for record in records:
        parser = Parser(f"{path}:{record.line}", folder.resolve())
        conversation = parser.parse(record.value)
        if conversation is not None and check_images:
            parser.problems += _broken_images(conversation, decoded)
        if conversation is not None and not parser.problems:
            conversations.append(conversation)
        problems += parser.problems
    return conversations, problems


def _broken_images(conversation: Conversation, decoded: dict[Path, str | None]) -> list[Problem]:
    problems = []
    for path in conversation.images:
        if path not in decoded:
            decoded[path] = _decode_error(path)
        error = decoded[path]
        if error is not None:
            problems.append(Problem(conversation.source, "image", error))
    return problems


def _decode_error(path: Path) -> str | None:
    try:
        load_image(path)
    except ValueError as error:
        return str(error)
    return None
