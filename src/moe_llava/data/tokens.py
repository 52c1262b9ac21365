"""Rendered segments -> tokens that know which of them are supervised."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from moe_llava.data.template import Segment

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Tokens:
    """One conversation in tokens, an image being one `<image>` token until `expand`.

    `spans` are the characters of `text` that each token stands for, white space included.
    """

    text: str
    input_ids: Int[np.ndarray, "token"]
    supervised: Bool[np.ndarray, "token"]
    spans: Int[np.ndarray, "token 2"]


def tokenize(
    batch: Sequence[Sequence[Segment]], tokenizer: PreTrainedTokenizerBase, prefix: Sequence[int] = ()
) -> list[Tokens]:
    """Tokenize each conversation once, as a whole, with a fast tokenizer.

    A token is supervised if it holds a character of a supervised segment. `prefix` (BOS) is put in front, unless
    the text already begins with the BOS token.
    """
    texts = ["".join(segment.text for segment in segments) for segments in batch]
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    bos = tokenizer.bos_token
    return [
        _supervise(text, segments, ids, offsets, () if bos is not None and text.startswith(str(bos)) else tuple(prefix))
        for text, segments, ids, offsets in zip(
            texts, batch, encoded["input_ids"], encoded["offset_mapping"], strict=True
        )
    ]


def expand(
    input_ids: Int[np.ndarray, "token"], supervised: Bool[np.ndarray, "token"], image_token_id: int, image_tokens: int
) -> tuple[Int[np.ndarray, "expanded"], Int[np.ndarray, "expanded"]]:
    """Repeat each image token `image_tokens` times; return ids and labels, -100 where not supervised."""
    is_image = input_ids == image_token_id
    repeats = np.where(is_image, image_tokens, 1)
    labels = np.where(supervised & ~is_image, input_ids, IGNORE_INDEX)
    return np.repeat(input_ids, repeats), np.repeat(labels, repeats)


def _supervise(
    text: str, segments: Sequence[Segment], ids: list[int], offsets: list[tuple[int, int]], prefix: tuple[int, ...]
) -> Tokens:
    spans = _cover(np.array(offsets, dtype=np.int64).reshape(-1, 2))
    flags = [np.full(len(segment.text), segment.supervised) for segment in segments]
    characters = np.concatenate([np.zeros(1, dtype=bool), *flags])
    before = np.cumsum(characters)  # supervised characters in text[:i]
    supervised = before[spans[:, 1]] > before[spans[:, 0]]
    front = len(prefix)
    return Tokens(
        text=text,
        input_ids=np.array([*prefix, *ids], dtype=np.int64),
        supervised=np.concatenate([np.zeros(front, dtype=bool), supervised]),
        spans=np.concatenate([np.zeros((front, 2), dtype=np.int64), spans]),
    )


def _cover(spans: Int[np.ndarray, "token 2"]) -> Int[np.ndarray, "token 2"]:
    """Give each token the characters between the last token and itself: some tokenizers leave white space out."""
    if len(spans) == 0:
        return spans
    previous_end = np.concatenate([[0], spans[:-1, 1]])
    start = np.minimum(spans[:, 0], previous_end)
    end = np.maximum(spans[:, 1], start)
    return np.stack([start, end], axis=1)
