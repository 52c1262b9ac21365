"""Rows -> training samples, each when its turn comes."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from moe_llava.data.conversation import Conversation, parse
from moe_llava.data.images import load_image
from moe_llava.data.problems import SHOWN, DataError, Problem
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.data.stream.order import scattered
from moe_llava.data.stream.rows import Row, Rows

logger = logging.getLogger(__name__)

Sample = dict[str, Tensor]


class StreamDataset(Dataset[Sample]):
    """Samples as of `ConversationDataset`, with `pixel_values`; a row is parsed and encoded when it is asked for.

    Args:
        rows: where they come from.
        image_folder: where relative image paths start.
        on_error: at a broken row "raise" a `DataError`, or "skip" it: an empty sample, which `Collator` counts. The
            first few are logged with their reasons.
    """

    def __init__(
        self,
        rows: Rows,
        processor: MoeLlavaProcessor,
        image_folder: str | Path,
        *,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.rows = rows
        self.processor = processor
        self.image_folder = Path(image_folder).resolve()
        self.on_error = on_error
        self._logged = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self._sample(self.rows[index])
        except DataError as error:
            where = self.rows.where(index) if self.on_error == "raise" or self._logged < SHOWN else ""
            problems = [Problem(where, problem.field, problem.message) for problem in error.problems]
            if self.on_error == "raise":
                raise DataError(problems) from error
            if where:
                self._logged += 1
                logger.warning("skipped %s", problems[0])
            return {}

    def _sample(self, row: Row) -> Sample:
        if isinstance(row.value, str):
            raise DataError([Problem("", "row", "is no JSON; write one object a row")])
        conversation, problems = parse(row.value, "", self.image_folder, row.files)
        if conversation is None:
            raise DataError(problems)
        try:
            encoded = self.processor.encode(conversation.messages, len(conversation.images))
            sample = {name: torch.tensor(encoded[name]) for name in ("input_ids", "labels")}
            if conversation.images:
                sample["pixel_values"] = self._pixels(conversation, row.files)
        except ValueError as error:
            raise DataError([Problem("", "messages", str(error))]) from error
        return sample

    def _pixels(self, conversation: Conversation, files: dict[str, bytes]) -> Tensor:
        images = [decode(str(path), files[str(path)]) if str(path) in files else load_image(path)
                  for path in conversation.images]  # fmt: skip
        return self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]


def decode(name: str, data: bytes) -> Image.Image:
    """An image from its file's bytes; see `load_image`.

    Raises:
        ValueError: they are broken or of an unsupported kind.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return load_image(image)
    except (OSError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: cannot decode this image ({error}); replace it or remove its row") from error


class StreamMixture(Dataset[Sample]):
    """Several streams as one, each sampled at its own rate, as `mixture` does, without a list of what was drawn.

    Attributes:
        blocks: first indices of stretches that are read best together, for `BlockShuffle`.
    """

    def __init__(self, parts: Sequence[tuple[StreamDataset, float]], seed: int) -> None:
        self.datasets = [dataset for dataset, _ in parts]
        self.seed = seed
        sizes = [round(weight * len(dataset)) for dataset, weight in parts]
        self._ends = np.cumsum(sizes)
        starts = self._ends - sizes
        self.blocks = np.concatenate(
            [_blocks(dataset, size) + start for dataset, size, start in zip(self.datasets, sizes, starts, strict=True)]
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        part, row = self.place(index)
        return self.datasets[part][row]

    def place(self, index: int) -> tuple[int, int]:
        """Which stream, and which row of it, a sample of the mixture is."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        within = index - int(self._ends[part - 1] if part else 0)
        size = len(self.datasets[part])
        whole = int(self._ends[part] - (self._ends[part - 1] if part else 0)) // size * size
        if within < whole:
            return part, within % size
        return part, scattered(within - whole, size, self.seed * 1000 + part)


def _blocks(dataset: StreamDataset, size: int) -> np.ndarray:
    """Blocks of whole passes over a stream; the part of a pass that is left is one block for every 4,096 rows."""
    count = len(dataset)
    passes, rest = divmod(size, count) if count else (0, 0)
    repeated = [dataset.rows.blocks + count * number for number in range(passes)]
    left = np.arange(passes * count, passes * count + rest, 4096)
    return np.concatenate([*repeated, left]).astype(np.int64)
