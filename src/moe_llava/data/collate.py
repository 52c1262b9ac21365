"""Samples -> one batch, padded on the right."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moe_llava.data.tokens import IGNORE_INDEX

_IMAGE_NAMES = ("pixel_values", "image_features")


@dataclass(frozen=True)
class Collator:
    """Pad samples to the longest and lay their images one after the other.

    Returns `input_ids`, `attention_mask` and `labels` (batch, token), and `pixel_values` (image, 3, H, W) or
    `image_features` (image, tokens, width) with the images of all samples in order, if there are any. Samples with
    and without images mix freely.

    Empty samples are rows that a stream skipped: they are left out and counted in `skipped`.

    Raises:
        ValueError: if some samples carry pixels and others features.
    """

    pad_token_id: int

    def __call__(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        skipped = sum(not sample for sample in samples)
        batch = self._collate([sample for sample in samples if sample] or [self._nothing()])
        return batch | {"skipped": torch.tensor(skipped)} if skipped else batch

    def _nothing(self) -> dict[str, Tensor]:
        """A sample that teaches nothing, where all of a batch were skipped: its process keeps step with the others."""
        return {"input_ids": torch.tensor([self.pad_token_id]), "labels": torch.tensor([IGNORE_INDEX])}

    def _collate(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        input_ids = [sample["input_ids"] for sample in samples]
        labels = [sample["labels"] for sample in samples]
        masks = [torch.ones_like(ids) for ids in input_ids]
        batch = {
            "input_ids": pad_sequence(input_ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence(masks, batch_first=True, padding_value=0),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        }
        images = {name: [sample[name] for sample in samples if name in sample] for name in _IMAGE_NAMES}
        if all(images.values()):
            raise ValueError("a batch mixes pixel_values and image_features; use the feature store for all or for none")
        batch |= {name: torch.cat(tensors) for name, tensors in images.items() if tensors}
        return batch
