"""Reading benchmark files; every error names the file and, in JSON lines, the line and the field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def locate(data: Path, *candidates: str) -> Path:
    """Return the first of `candidates` (paths inside the folder `data`) that exists.

    Raises:
        ValueError: none exists.
    """
    for candidate in candidates:
        if (data / candidate).exists():
            return data / candidate
    raise ValueError(f"{data} holds none of {', '.join(candidates)}; give the folder with the benchmark's own files")


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a file, line ends as they stand.

    Raises:
        ValueError: the file is absent or not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; check the path")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it to UTF-8") from error


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: the file is absent or not JSON.
    """
    return _parse(read_text(path), str(path))


def read_jsonl(path: Path, *fields: str) -> list[Row]:
    """Return the objects of a JSON lines file, each of which must have `fields`; blank lines are skipped.

    Raises:
        ValueError: the file is absent or empty, a line is not a JSON object, or a field is missing.
    """
    rows = list(_objects(path))
    if not rows:
        raise ValueError(f"{path} is empty; it needs one JSON object a line")
    for place, row in rows:
        require_fields(row, place, *fields)
    return [row for _, row in rows]


def read_answers(path: Path, *fields: str) -> list[Row]:
    """Return a model's answer file: JSON lines with `question_id`, `text` (a string) and `fields`.

    Raises:
        ValueError: as `read_jsonl`, or an answer's `text` is not a string.
    """
    rows = read_jsonl(path, "question_id", "text", *fields)
    for row in rows:
        if not isinstance(row["text"], str):
            raise ValueError(f"{path}: `text` of question {row['question_id']} is not a string: {row['text']!r}")
    return rows


def is_json_list(path: Path) -> bool:
    """Return whether the file is one JSON list, as test servers take it, rather than JSON lines."""
    return read_text(path).lstrip().startswith("[")


def require_fields(row: Row, place: str, *fields: str) -> None:
    """Raise ValueError, naming `place`, if `row` lacks one of `fields`."""
    missing = [field for field in fields if field not in row]
    if missing:
        raise ValueError(f"{place}: no field {', '.join(missing)} (found {', '.join(row) or 'nothing'})")


def _objects(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        row = _parse(line, place)
        if not isinstance(row, dict):
            raise ValueError(f"{place}: not a JSON object: {line[:60]}")
        yield place, row


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error})") from error
