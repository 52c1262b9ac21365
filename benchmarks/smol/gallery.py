"""Pictures nobody trained on, with what the model says of them."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from PIL import Image

_COLUMNS = 3


def draw_gallery(entries: Sequence[dict[str, Any]], questions: Sequence[str], path: Path) -> None:
    """One cell a picture: questions and answers beside it, the frame green where the name is right, red where not."""
    rows = -(-len(entries) // _COLUMNS)
    figure, cells = pyplot.subplots(rows, 2 * _COLUMNS, figsize=(13, 1.9 * rows), width_ratios=[1, 2.2] * _COLUMNS)
    for axis in cells.flat:
        axis.axis("off")
    for place, entry in enumerate(entries):
        row, column = divmod(place, _COLUMNS)
        picture, text = cells[row][2 * column], cells[row][2 * column + 1]
        picture.imshow(Image.open(entry["picture"]))
        colour = "green" if entry["right"] else "firebrick"
        said = [
            f"{question}\n  " + "\n  ".join(textwrap.wrap(answer, 38)[:4])
            for question, answer in zip(questions, entry["answers"], strict=True)
        ]
        text.text(0, 0.98, "\n".join(said), va="top", fontsize=7.5)
        picture.set_title(entry["name"], fontsize=8, color=colour)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
