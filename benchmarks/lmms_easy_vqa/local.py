"""What lmms-eval needs to know of easy-VQA's rows."""

from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path("runs/tiny/data/easy_vqa")


def visual(row: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(FOLDER / row["image"]).convert("RGB")]


def text(row: dict[str, Any]) -> str:
    return row["question"]


def results(row: dict[str, Any], answers: list[str]) -> dict[str, float]:
    return {"accuracy": float(answers[0].strip().lower() == row["answer"].lower())}
