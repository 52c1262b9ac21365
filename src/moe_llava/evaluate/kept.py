"""JSON lines that survive a kill: appended one by one; a line that was cut off is passed over."""

import json
import os
from contextlib import suppress
from pathlib import Path

from moe_llava.evaluate.scores.files import Row


def keep(path: Path, row: Row) -> None:
    """Append one line, which has left this process when the call returns."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # after the cut-off line
        file.write(json.dumps(row).encode() + b"\n")


def kept(path: Path) -> list[Row]:
    """The whole lines so far; none where there is no file."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows
