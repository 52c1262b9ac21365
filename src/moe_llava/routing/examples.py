"""Single samples for the report: pictures as the model sees them, tokens, and the experts of each."""

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.generate.engine import ImageSource
from moe_llava.generate.image_features import open_image
from moe_llava.routing.paths import PathTable, path_of
from moe_llava.routing.routes import RouteFile, array, parquet

SHOWN_PIXELS = 384


@dataclass(frozen=True)
class Example:
    """One sample, its tokens in order; `image`, `row` and `column` are -1 for text."""

    id: str
    pictures: tuple[Image.Image, ...]
    token: tuple[str, ...]
    part: tuple[str, ...]
    image: Int[np.ndarray, " token"]
    row: Int[np.ndarray, " token"]
    column: Int[np.ndarray, " token"]
    experts: Int[np.ndarray, "token layer k"]
    weights: Float[np.ndarray, "token layer k"]

    def for_page(self, num_experts: int) -> dict[str, Any]:
        """As the page's script reads it: experts and weights as base64 of token by layer by choice."""
        kind = np.uint8 if num_experts <= 256 else np.uint16
        return {
            "id": self.id,
            "pictures": [_data_uri(picture) for picture in self.pictures],
            "tokens": [text if image < 0 else None for text, image in zip(self.token, self.image, strict=True)],
            "parts": [part[0] for part in self.part],
            "places": np.stack([self.image, self.row, self.column], axis=1).tolist(),
            "experts": _base64(self.experts.astype(kind)),
            "weights": _base64((self.weights.clip(0, 1) * 255).round().astype(np.uint8)),
        }


def read_examples(
    file: RouteFile, processor: MoeLlavaProcessor, images: Mapping[str, Sequence[ImageSource]]
) -> list[Example]:
    """The samples named by the keys of `images`, as far as the trace has them; the first of a doubled name."""
    if not images:
        return []
    first: dict[str, int] = {}
    for batch in file.tables(["sample", "id"]):
        for name, sample in zip(batch["id"].to_pylist(), batch["sample"].to_pylist(), strict=True):
            if name in images:
                first.setdefault(name, sample)
    _, pq = parquet()
    table = pq.read_table(file.path, filters=[("sample", "in", list(first.values()))]) if first else None
    examples = []
    for name, sample in first.items():
        assert table is not None
        rows = table.filter(np.asarray(table["sample"]) == sample).sort_by("position").combine_chunks()
        pictures = tuple(as_seen(processor, source) for source in images[name])
        examples.append(_example(name, pictures, rows))
    return examples


def _example(name: str, pictures: tuple[Image.Image, ...], rows: Any) -> Example:
    def place(column: str) -> np.ndarray:
        return np.asarray(rows[column].fill_null(-1).to_numpy(), dtype=np.int64)

    def lists(column: str) -> np.ndarray:
        return array(rows[column].combine_chunks())

    return Example(
        id=name,
        pictures=pictures,
        token=tuple(rows["token"].to_pylist()),
        part=tuple(rows["part"].to_pylist()),
        image=place("image"),
        row=place("row"),
        column=place("column"),
        experts=lists("experts"),
        weights=lists("weights"),
    )


def as_seen(processor: MoeLlavaProcessor, source: ImageSource) -> Image.Image:
    """A picture after the model's own resizing and cropping, so that patches lie where the tower reads them."""
    maker = processor.image_processor
    pixels = np.asarray(maker([open_image(source)], return_tensors="np")["pixel_values"][0], dtype=np.float32)
    if getattr(maker, "do_normalize", False):
        mean, deviation = (np.reshape(getattr(maker, name), (-1, 1, 1)) for name in ("image_mean", "image_std"))
        pixels = pixels * deviation + mean
    scale = 1 if pixels.max() > 2 else 255
    return Image.fromarray((pixels * scale).clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0))


def patches_of(
    examples: Sequence[Example], table: PathTable, grid: tuple[int, int] | None, most: int = 8
) -> list[list[str]]:
    """For each path of image patches some patches of the examples that took it, cut out, as data URIs."""
    found: dict[int, list[str]] = defaultdict(list)
    keys = {path.experts: number for number, path in enumerate(table.paths)}
    for example in examples if grid else ():
        choices = len(next(iter(keys))[0]) if keys else 1
        for token in np.flatnonzero((example.image >= 0) & (example.row >= 0)):
            steps = path_of(example.experts[token : token + 1], choices)[0]
            number = keys.get(tuple(tuple(int(expert) for expert in step) for step in steps))
            if number is not None and len(found[number]) < most:
                assert grid is not None
                picture = example.pictures[example.image[token]]
                found[number].append(_data_uri(_cut(picture, grid, example.row[token], example.column[token]), 32))
    return [found[number] for number in range(len(table.paths))]


def _cut(picture: Image.Image, grid: tuple[int, int], row: int, column: int) -> Image.Image:
    height, width = picture.height / grid[0], picture.width / grid[1]
    return picture.crop(
        (round(column * width), round(row * height), round((column + 1) * width), round((row + 1) * height))
    )


def _data_uri(picture: Image.Image, pixels: int = SHOWN_PIXELS) -> str:
    shown = picture.copy()
    shown.thumbnail((pixels, pixels))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def spread_out(ids: Sequence[str], images: Sequence[Sequence[Path]], most: int) -> dict[str, Sequence[Path]]:
    """Samples to show: evenly spaced among those with images, or among all where none has."""
    candidates = [index for index in range(len(ids)) if images[index]] or list(range(len(ids)))
    places = np.linspace(0, len(candidates) - 1, min(most, len(candidates))).round().astype(int)
    return {ids[candidates[place]]: images[candidates[place]] for place in places}
