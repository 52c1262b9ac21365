"""A conversation at the terminal."""

from collections.abc import Iterator, Sequence

from rich.console import Console

from moe_llava.assistant import Assistant
from moe_llava.generate.engine import Decoding, ImageSource, Request, place_images


def converse(assistant: Assistant, images: Sequence[ImageSource], decoding: Decoding, console: Console) -> None:
    """Ask and answer until an empty line, the end of input, or Ctrl-C at the prompt; Ctrl-C in an answer stops it.

    The images come with the first question and stay in view, as the whole history does.
    """
    if console.is_terminal:
        console.print("Ask away; an empty line ends.", style="dim")
    history: list[dict[str, str]] = []
    while question := _next_question(console):
        content = question if history else place_images(question, len(images))
        request = Request(messages=(*history, {"role": "user", "content": content}), images=tuple(images))
        try:
            answer = _print_answer(assistant.engine.stream(request, decoding), console)
        except ValueError as error:
            console.print(f"Error: {error}", style="red", markup=False)
            if not history:
                raise
            continue
        history += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def _next_question(console: Console) -> str:
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
