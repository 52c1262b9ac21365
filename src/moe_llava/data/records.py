"""A JSON array or JSON Lines file -> its items, each with the line it starts on."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_llava.data.problems import Problem

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Record:
    """One item of a data file and the 1-based line it starts on."""

    line: int
    value: Any


def read_records(path: Path) -> tuple[list[Record], list[Problem]]:
    """All items that can be parsed, and a problem for each place that cannot.

    The first character decides: `[` opens a JSON array, anything else is one JSON value a line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return [], [Problem(str(path), "file", f"is not UTF-8 (byte {error.start}); save it as UTF-8")]
    except OSError as error:
        return [], [Problem(str(path), "file", f"cannot be read ({error.strerror}); check the path")]
    records, problems = _array(path, text) if text.lstrip()[:1] == "[" else _lines(path, text)
    if not records and not problems:
        problems.append(Problem(str(path), "file", "holds no conversation; expected a JSON array or JSON Lines"))
    return records, problems


def _lines(path: Path, text: str) -> tuple[list[Record], list[Problem]]:
    records, problems = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(Record(number, json.loads(line)))
        except json.JSONDecodeError as error:
            remedy = "write one complete JSON object a line, or one JSON array for the whole file"
            message = f"invalid JSON at column {error.colno} ({error.msg}); {remedy}"
            problems.append(Problem(f"{path}:{number}", "line", message))
    if not records and len(problems) > 1 and _is_json(text):
        return [], [Problem(f"{path}:1", "file", "holds one JSON value over several lines; put it into [ ]")]
    return records, problems


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _array(path: Path, text: str) -> tuple[list[Record], list[Problem]]:
    records: list[Record] = []
    line, counted = 1, 0
    position = _skip(text, text.index("[") + 1)
    try:
        while text[position : position + 1] != "]":
            if records:
                position = _expect_comma(text, position)
            line, counted = line + text.count("\n", counted, position), position
            value, position = _DECODER.raw_decode(text, position)
            records.append(Record(line, value))
            position = _skip(text, position)
        if text[position + 1 :].strip():
            raise json.JSONDecodeError("Extra data after the array", text, position + 1)
    except json.JSONDecodeError as error:
        message = f"invalid JSON at column {error.colno} ({error.msg}); correct it, what follows was not read"
        return records, [Problem(f"{path}:{error.lineno}", "file", message)]
    return records, []


def _expect_comma(text: str, position: int) -> int:
    if text[position : position + 1] != ",":
        raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()
