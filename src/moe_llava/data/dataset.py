"""Conversations -> training samples. All texts are encoded up front, so that training cannot fail on them later."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from moe_llava.data.conversation import Conversation
from moe_llava.data.features import FeatureStore
from moe_llava.data.images import load_image
from moe_llava.data.problems import DataError, Problem
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.data.sampler import LengthGroupedSampler
from moe_llava.data.tokens import Tokens, expand

__all__ = ["ConversationDataset", "LengthGroupedSampler", "Mixture", "mixture"]

_BATCH = 256
_LARGE = 10_000  # conversations from which on encoding them shows its progress

Sample = dict[str, Tensor]


class ConversationDataset(Dataset[Sample]):
    """Samples of `input_ids` and `labels` (T,), and `pixel_values` (n, 3, H, W) or `image_features`
    (n, tokens, width) where the conversation has images.

    Args:
        conversations: what to learn from.
        processor: the model's processor.
        features: image features computed beforehand; then no image is opened.
        on_error: "raise" a `DataError` with all the problems, or "skip" the samples and list them in `skipped`.

    Attributes:
        lengths: tokens of each sample, image tokens included.
        has_image: whether each sample has images.
        skipped: the problems of the samples left out.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        processor: MoeLlavaProcessor,
        features: FeatureStore | None = None,
        *,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; choose 'raise' or 'skip'")
        self.processor = processor
        self.features = features
        self.conversations: list[Conversation] = []
        self.lengths: list[int] = []
        self.skipped: list[Problem] = []
        self._check_features()
        self._encode(conversations)
        self.has_image = [bool(conversation.images) for conversation in self.conversations]
        if self.skipped and on_error == "raise":
            raise DataError(self.skipped)

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Sample:
        start, end = self._bounds[index], self._bounds[index + 1]
        input_ids, labels = expand(
            self._input_ids[start:end],
            self._supervised[start:end],
            self.processor.image_token_id,
            self.processor.image_seq_length,
        )
        sample = {
            "input_ids": torch.from_numpy(input_ids.astype(np.int64)),
            "labels": torch.from_numpy(labels.astype(np.int64)),
        }
        if self.has_image[index]:
            name = "pixel_values" if self.features is None else "image_features"
            sample[name] = self._images(self.conversations[index])
        return sample

    def _images(self, conversation: Conversation) -> Float[Tensor, "image ..."]:
        if self.features is not None:
            return torch.stack([self.features[path] for path in conversation.images])
        images = [load_image(path) for path in conversation.images]
        return self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]

    def _check_features(self) -> None:
        if self.features is None or self.features.shape is None:
            return
        tokens, expected = self.features.shape[0], self.processor.image_seq_length
        if tokens != expected:
            raise ValueError(f"the feature store has {tokens} tokens an image, the processor {expected}; rebuild it")

    def _encode(self, conversations: Sequence[Conversation]) -> None:
        ids, supervised, bounds = [], [], [0]
        with tqdm(total=len(conversations), desc="encode", disable=len(conversations) < _LARGE) as progress:
            for start in range(0, len(conversations), _BATCH):
                batch = conversations[start : start + _BATCH]
                for conversation, tokens in self._sound(batch):
                    self.conversations.append(conversation)
                    self.lengths.append(self.processor.length(tokens))
                    ids.append(tokens.input_ids.astype(np.int32))
                    supervised.append(tokens.supervised)
                    bounds.append(bounds[-1] + len(tokens.input_ids))
                progress.update(len(batch))
        self._input_ids = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
        self._supervised = np.concatenate(supervised) if supervised else np.zeros(0, dtype=bool)
        self._bounds = np.array(bounds, dtype=np.int64)

    def _sound(self, batch: Sequence[Conversation]) -> Iterator[tuple[Conversation, Tokens]]:
        """The conversations that can be trained on, with their tokens; the problems of the others are kept."""
        rendered = []
        for conversation in batch:
            try:
                rendered.append((conversation, self.processor.render(conversation.messages)))
            except ValueError as error:
                self._skip(conversation, "messages", error)
        all_tokens = self.processor.tokenize([segments for _, segments in rendered])
        for (conversation, _), tokens in zip(rendered, all_tokens, strict=True):
            try:
                self.processor.check(tokens, len(conversation.images))
                self._check_stored(conversation)
            except ValueError as error:
                self._skip(conversation, "messages", error)
                continue
            yield conversation, tokens

    def _check_stored(self, conversation: Conversation) -> None:
        for path in conversation.images:
            if self.features is not None and path not in self.features:
                raise ValueError(f"{path} is not in the feature store; build it again with this image")

    def _skip(self, conversation: Conversation, field: str, error: ValueError) -> None:
        self.skipped.append(Problem(conversation.source, field, str(error)))


class Mixture(Dataset[Sample]):
    """Chosen samples of several datasets one after the other; made by `mixture`."""

    def __init__(self, datasets: Sequence[Dataset[Sample]], choices: Sequence[np.ndarray]) -> None:
        self.datasets = list(datasets)
        self._part = np.repeat(np.arange(len(choices)), [len(choice) for choice in choices])
        self._index = np.concatenate([*choices, np.zeros(0, dtype=np.int64)])
        self.lengths: list[int] = self._gather("lengths")
        self.has_image: list[bool] = self._gather("has_image")

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        return self.datasets[self._part[index]][int(self._index[index])]

    def _gather(self, name: str) -> list:
        columns = [getattr(dataset, name) for dataset in self.datasets]
        return [columns[part][index] for part, index in zip(self._part, self._index, strict=True)]


def mixture(parts: Sequence[tuple[Dataset[Sample], float]], seed: int) -> Mixture:
    """Several datasets as one, each sampled at its own rate.

    A weight of 1.0 takes a dataset as it is, 0.5 a random half of it, 2.0 all of it twice, 1.5 all of it and a random
    half again; samples are drawn without replacement. The same seed gives the same samples in the same order.

    Args:
        parts: datasets that have `lengths` and `has_image`, with their weights.
        seed: of the draw.

    Raises:
        ValueError: if a weight is not positive.
    """
    choices = []
    for number, (dataset, weight) in enumerate(parts):
        if not 0 < weight < float("inf"):
            raise ValueError(f"part {number} has weight {weight}; give a positive number or leave the part out")
        size = len(dataset)  # type: ignore[arg-type]
        rounds, rest = divmod(round(weight * size), size) if size else (0, 0)
        drawn = np.random.default_rng([seed, number]).permutation(size)[:rest]
        choices.append(np.concatenate([np.tile(np.arange(size), rounds), np.sort(drawn)]).astype(np.int64))
    return Mixture([dataset for dataset, _ in parts], choices)
