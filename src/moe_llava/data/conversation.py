"""LLaVA JSON and messages JSON Lines -> `Conversation`. Every error names file, line and field."""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe_llava.data.images import load_image
from moe_llava.data.problems import DataError, Problem
from moe_llava.data.records import read_records

IMAGE_TOKEN = "<image>"

Role = Literal["system", "user", "assistant"]

_LLAVA_ROLES: dict[str, Role] = {"system": "system", "human": "user", "gpt": "assistant"}
_MESSAGE_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


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
    path = Path(path)
    folder = (Path(image_folder) if image_folder is not None else path.parent).resolve()
    records, problems = read_records(path)
    conversations = []
    decoded: dict[Path, str | None] = {}
    for record in records:
        parser = _Parser(f"{path}:{record.line}", folder)
        conversation = parser.parse(record.value)
        if conversation is not None and check_images:
            parser.problems += _broken_images(conversation, decoded)
        if conversation is not None and not parser.problems:
            conversations.append(conversation)
        problems += parser.problems
    return conversations, problems


def parse(
    value: Any, source: str, folder: Path, files: Container[str] = ()
) -> tuple[Conversation | None, list[Problem]]:
    """One item in either form -> a conversation, or all that is wrong with it.

    `files` are names of images that come with the item; others are paths below `folder` and must exist.
    """
    parser = _Parser(source, folder, files)
    conversation = parser.parse(value)
    return (None if parser.problems else conversation), parser.problems


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


class _Parser:
    """One record -> one Conversation, or the list of all that is wrong with it in `problems`."""

    def __init__(self, source: str, folder: Path, files: Container[str] = ()) -> None:
        self.source = source
        self.folder = folder
        self.files = files
        self.problems: list[Problem] = []

    def parse(self, value: Any) -> Conversation | None:
        if not isinstance(value, dict):
            self._report("item", f"is {_kind(value)}; expected an object")
            return None
        if ("conversations" in value) == ("messages" in value):
            self._report("messages", "needs one list of turns, either `conversations` or `messages`")
            return None
        if "video" in value:
            self._report("video", "videos are not supported; give its frames as `image`")
            return None
        field = "messages" if "messages" in value else "conversations"
        turns = self._turns(value[field], field)
        declared = self._declared_images(value)
        if turns is None or declared is None:
            return None
        messages = tuple(message for message, _ in turns)
        self._check_order(messages, field)
        slots = [slot for _, message_slots in turns for slot in message_slots]
        images = self._fill(slots, declared)
        return Conversation(self._id(value), messages, images, self.source)

    def _report(self, field: str, message: str) -> None:
        self.problems.append(Problem(self.source, field, message))

    def _id(self, value: dict[str, Any]) -> str:
        name = value.get("id")
        if name is None:
            return self.source
        if not isinstance(name, str | int):
            self._report("id", f"is {_kind(name)}; expected a string")
        return str(name)

    def _turns(self, value: Any, field: str) -> list[tuple[Message, list[str | None]]] | None:
        """Each message with one entry per `<image>` in it: the path given at that place, or None."""
        if not isinstance(value, list) or not value:
            self._report(field, "expected a list with at least one question and one answer")
            return None
        turns = [self._turn(item, f"{field}[{index}]", field == "messages") for index, item in enumerate(value)]
        complete = [turn for turn in turns if turn is not None]
        return complete if len(complete) == len(turns) else None

    def _turn(self, item: Any, field: str, is_message: bool) -> tuple[Message, list[str | None]] | None:
        if not isinstance(item, dict):
            self._report(field, f"is {_kind(item)}; expected an object")
            return None
        role_key, text_key = ("role", "content") if is_message else ("from", "value")
        roles = _MESSAGE_ROLES if is_message else _LLAVA_ROLES
        missing = [key for key in (role_key, text_key) if key not in item]
        if missing:
            self._report(field, f"lacks {' and '.join(f'`{key}`' for key in missing)}")
            return None
        name, content = item[role_key], item[text_key]
        if not isinstance(name, str) or name not in roles:
            self._report(f"{field}.{role_key}", f"unknown role {name!r}; write one of {', '.join(roles)}")
            return None
        if is_message and isinstance(content, list):
            return self._parts(roles[name], content, f"{field}.content")
        if not isinstance(content, str):
            self._report(f"{field}.{text_key}", f"is {_kind(content)}; expected text")
            return None
        return Message(roles[name], content), [None] * content.count(IMAGE_TOKEN)

    def _parts(self, role: Role, parts: list[Any], field: str) -> tuple[Message, list[str | None]] | None:
        pieces: list[str] = []
        slots: list[str | None] = []
        for index, part in enumerate(parts):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                pieces.append(part["text"])
                slots += [None] * part["text"].count(IMAGE_TOKEN)
            elif kind == "image":
                pieces.append(IMAGE_TOKEN + ("\n" if index + 1 < len(parts) else ""))
                path = next((part[key] for key in ("image", "path", "url") if part.get(key) is not None), None)
                if path is not None and not isinstance(path, str):
                    self._report(f"{field}[{index}]", f"image is {_kind(path)}; expected a path")
                    return None
                slots.append(path)
            else:
                self._report(f"{field}[{index}]", 'expected {"type": "text", "text": ...} or {"type": "image"}')
                return None
        return Message(role, "".join(pieces)), slots

    def _declared_images(self, value: dict[str, Any]) -> list[str] | None:
        if value.get("image") is not None and value.get("images") is not None:
            self._report("images", "give either `image` or `images`, not both")
            return None
        field = "images" if value.get("images") is not None else "image"
        images = value.get(field)
        images = [] if images is None else [images] if isinstance(images, str) else images
        if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
            self._report(field, "expected a path or a list of paths")
            return None
        return images

    def _fill(self, slots: list[str | None], declared: list[str]) -> tuple[Path, ...]:
        open_slots = slots.count(None)
        if open_slots != len(declared):
            counts = (
                f"the turns hold {open_slots} {IMAGE_TOKEN} without a path and the item lists {len(declared)} images"
            )
            self._report("image", f"{counts}; write one {IMAGE_TOKEN} where each image stands")
            return ()
        remaining = iter(declared)
        return tuple(self._resolve(next(remaining) if slot is None else slot) for slot in slots)

    def _resolve(self, name: str) -> Path:
        if name in self.files:
            return Path(name)
        if name.startswith(("http://", "https://", "data:")):
            self._report("image", f"{name[:60]} is not a file; download it and give its path")
            return Path()
        path = self.folder / name.removeprefix("file://")
        if not path.is_file():
            self._report("image", f"{path} does not exist; correct the path or set the image folder")
        return path

    def _check_order(self, messages: tuple[Message, ...], field: str) -> None:
        roles = [message.role for message in messages]
        if roles.count("system") > 1:
            self._report(field, f"{roles.count('system')} system turns; keep one, at the beginning")
            return
        if "assistant" not in roles:
            self._report(field, "no answer to learn from; add an assistant turn")
            return
        first = 1 if roles[0] == "system" else 0
        for index, role in enumerate(roles[first:], start=first):
            expected = "user" if (index - first) % 2 == 0 else "assistant"
            if role != expected:
                self._report(f"{field}[{index}]", f"out of order: {role} where {expected} is due; alternate the turns")
                return
        if roles[-1] == "user":
            self._report(f"{field}[{len(roles) - 1}]", "the last question has no answer; add it or remove the turn")
        for index, message in enumerate(messages):
            if message.role == "assistant" and not message.content.strip():
                self._report(f"{field}[{index}]", "empty answer: nothing to learn; write it or remove the turn")


def _kind(value: Any) -> str:
    """How JSON calls the type of a value."""
    names = {dict: "an object", list: "an array", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
