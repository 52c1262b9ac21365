"""A conversation at the terminal."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from moe_llava.assistant import Assistant
from moe_llava.data.images import load_image
from moe_llava.generate.engine import Decoding, ImageSource, Request, place_images

HELP = "/image FILE shows a picture with the next question, /clear begins anew, /save FILE writes the conversation."


@dataclass
class Conversation:
    """What was said, and the pictures in view.

    Attributes:
        fresh: pictures that come with the next question.
    """

    messages: list[dict[str, str]] = field(default_factory=list)
    images: list[ImageSource] = field(default_factory=list)
    fresh: list[ImageSource] = field(default_factory=list)

    def request(self, question: str) -> Request:
        """The conversation with one more question."""
        turn = {"role": "user", "content": place_images(question, len(self.fresh))}
        return Request((*self.messages, turn), (*self.images, *self.fresh))

    def note(self, request: Request, answer: str) -> None:
        self.messages = [*request.messages, {"role": "assistant", "content": answer}]
        self.images, self.fresh = list(request.images), []

    def clear(self) -> None:
        """Forget all, the pictures too."""
        self.messages, self.images, self.fresh = [], [], []

    def show(self, name: str) -> None:
        """Take a picture for the next question.

        Raises:
            ValueError: it cannot be read.
        """
        load_image(name)
        self.fresh.append(name)

    def save(self, name: str) -> None:
        """Write the conversation as a line of messages JSONL, which `moe-llava data preview` and training read.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(name)
        beside = path.with_name(f".{path.name}.writing")
        row = {"messages": self.messages, "images": [str(Path(str(image)).resolve()) for image in self.images]}
        beside.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(path)


def converse(assistant: Assistant, images: Sequence[ImageSource], decoding: Decoding, console: Console) -> None:
    """Ask and answer until an empty line, the end of input, or Ctrl-C at the prompt; Ctrl-C in an answer stops it.

    The images come with the first question and stay in view, as the whole history does. Lines that begin with `/` are
    commands, see `HELP`. An error is told and the conversation goes on, unless nobody is there to mend it.
    """
    if console.is_terminal:
        console.print(f"Ask away; an empty line ends. {HELP}", style="dim")
    conversation = Conversation(fresh=list(images))
    while line := _next_line(console):
        try:
            if line.startswith("/"):
                _command(line, conversation, console)
                continue
            request = conversation.request(line)
            conversation.note(request, _print_answer(assistant.engine.stream(request, decoding), console))
        except (ValueError, OSError) as error:
            if not console.is_terminal and not conversation.messages:
                raise
            console.print(f"Error: {error}", style="red", markup=False)


def _command(line: str, conversation: Conversation, console: Console) -> None:
    """Do what a line that begins with `/` says.

    Raises:
        ValueError: there is no such command, or its file is missing.
    """
    name, _, argument = line.partition(" ")
    argument = str(Path(argument.strip()).expanduser()) if argument.strip() else ""
    if name == "/clear" and not argument:
        conversation.clear()
        console.print("Cleared.", style="dim")
    elif name == "/image" and argument:
        conversation.show(argument)
        console.print(f"{argument} comes with the next question.", style="dim", markup=False, highlight=False)
    elif name == "/save" and argument:
        conversation.save(argument)
        console.print(f"Saved to {argument}.", style="dim", markup=False, highlight=False)
    else:
        raise ValueError(f"{line} is no command. {HELP}")


def _next_line(console: Console) -> str:
    try:
        return console.input("> " if console.is_terminal else "").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return ""


def _print_answer(pieces: Iterator[str], console: Console) -> str:
    """Print an answer as it comes; Ctrl-C cuts it short."""
    answer = ""
    try:
        for piece in pieces:
            answer += piece
            console.print(piece, end="", markup=False, highlight=False)
    except KeyboardInterrupt:
        console.print(" …", end="")
    console.print()
    return answer.strip()
