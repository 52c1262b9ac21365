"""Supervision follows characters, whatever a tokenizer does with white space."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from moe_llava.data import Segment
from moe_llava.data.tokens import expand, tokenize


def split(tokenizer: PreTrainedTokenizerFast, *segments: tuple[str, bool], prefix: tuple[int, ...] = ()) -> list[str]:
    """The texts of the supervised tokens."""
    tokens = tokenize([[Segment(*segment) for segment in segments]], tokenizer, prefix)[0]
    assert len(tokens.input_ids) == len(tokens.supervised) == len(tokens.spans)
    return [tokens.text[start:end] for start, end in tokens.spans[tokens.supervised]]


def trimming(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer, leaving spaces out of its offsets, as GPT-2's does."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize("trim", [False, True])
def test_the_answer_with_its_space_and_end_mark(tokenizer: PreTrainedTokenizerFast, trim: bool) -> None:
    chosen = trimming(tokenizer) if trim else tokenizer
    pieces = split(chosen, ("USER: Hi ASSISTANT:", False), (" A cat. </s>", True), ("USER:", False))
    assert "".join(pieces) == " A cat. </s>"


@pytest.mark.parametrize("trim", [False, True])
def test_white_space_alone_can_be_supervised(tokenizer: PreTrainedTokenizerFast, trim: bool) -> None:
    chosen = trimming(tokenizer) if trim else tokenizer
    assert split(chosen, ("x", False), ("y", True), (" ", True), ("</s>", False)) == ["y", " "]


def test_one_character_of_several_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = split(tokenizer, ("a", False), ("🦊", True), ("b", False))
    assert len(pieces) == 4
    assert set(pieces) == {"🦊"}


def test_a_token_across_the_border_is_supervised() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "bc": 1, "d": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    assert split(words, ("a b", False), ("c d", True)) == [" bc", " d"]


def test_the_prefix_is_put_once_and_never_supervised(tokenizer: PreTrainedTokenizerFast) -> None:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    with_bos = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="</s>")
    segments = [[Segment("Hi", True)], [Segment("</s>Hi", True)]]
    bare, begun = tokenize(segments, with_bos, prefix=(1,))
    assert bare.input_ids.tolist() == begun.input_ids.tolist()
    assert not bare.supervised[0]


def test_nothing_in_nothing_out(tokenizer: PreTrainedTokenizerFast) -> None:
    assert split(tokenizer) == []


def test_expand_repeats_images_and_masks_them() -> None:
    ids, supervised = np.array([5, 9, 6, 9, 7]), np.array([False, True, True, False, True])
    input_ids, labels = expand(ids, supervised, image_token_id=9, image_tokens=3)
    assert input_ids.tolist() == [5, 9, 9, 9, 6, 9, 9, 9, 7]
    assert labels.tolist() == [-100, -100, -100, -100, 6, -100, -100, -100, 7]
