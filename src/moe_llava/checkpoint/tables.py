"""The JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any


def read_table(path: Path) -> dict[str, Any]:
    """A JSON object as a dictionary.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch it again.") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds no JSON object: fetch it again.")
    return table
