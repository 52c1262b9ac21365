"""JSON lines that survive a kill: appended one by one; a line that was cut off is passed over."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moe_llava.evaluate.scores.files import Row


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what to do where `path` cannot be written.

    Raises:
        ValueError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); what was answered before is kept: mend that, run again"
        ) from error


def keep(path: Path, row: Row) -> None:
    """Append one line, which has left this process when the call returns.

    Raises:
        ValueError: it cannot be written.
    """
    with writing(path), path.open("ab+") as file:
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
