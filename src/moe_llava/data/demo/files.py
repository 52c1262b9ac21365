"""Files that are either complete or absent, and the installed packages they are made from."""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

Progress = Callable[[str, int, int], None]
"""Called with what is being written, how many are done, and how many there are."""


def package_folder(module: str) -> Path:
    """The folder of an installed demo package, found without running its code.

    Raises:
        ValueError: it is not installed.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the demo needs the package that provides {module!r}: pip install 'moe-llava[demo]'")
    return Path(spec.submodule_search_locations[0])


def write_bytes(path: Path, data: bytes) -> None:
    """Write a temporary neighbour, then rename it: a killed build leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


def write_records(path: Path, records: Iterable[dict]) -> None:
    """`.jsonl`: one object a line. Anything else: one JSON list, still one record a line, so that it can be read."""
    if path.suffix == ".jsonl":
        write_lines(path, records)
        return
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    write_bytes(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())


def write_lines(path: Path, records: Iterable[dict]) -> None:
    """One object a line, whatever the file is called."""
    write_bytes(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())


def write_json(path: Path, value: object) -> None:
    """One indented JSON value."""
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def write_png(path: Path, image: Image.Image) -> None:
    """A PNG, packed lightly: a demo's pictures are written once and read often."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    write_bytes(path, buffer.getvalue())


def conversation(identifier: str, turns: Iterable[tuple[str, str]], image: str | None = None) -> dict:
    """One record in LLaVA's JSON form.

    Args:
        identifier: the record's `id`.
        turns: (what the human says, what the model answers); the first human text may be empty if there is an image.
        image: path relative to the file that will hold the record; its `<image>` stands in the first turn only.
    """
    record: dict = {"id": identifier} if image is None else {"id": identifier, "image": image}
    messages = []
    for index, (question, answer) in enumerate(turns):
        shown = f"<image>\n{question}".rstrip("\n") if image is not None and index == 0 else question
        messages += [{"from": "human", "value": shown}, {"from": "gpt", "value": answer}]
    return record | {"conversations": messages}


@contextmanager
def reporting(progress: Progress | bool) -> Iterator[Progress]:
    """A function to report progress to: the caller's own, a bar on standard error (True), or none (False)."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda what, done, total: None
    else:
        with _bars() as report:
            yield report


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True)) as bars:
        tasks: dict[str, object] = {}

        def report(what: str, done: int, total: int) -> None:
            task = tasks.setdefault(what, None) or bars.add_task(what, total=total)
            tasks[what] = task
            bars.update(task, completed=done)  # type: ignore[arg-type]

        yield report
