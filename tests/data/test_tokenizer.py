"""A tokenizer gets what a vision-language model needs, or is trained from scratch."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from moe_llava.data import prepare_tokenizer, train_tokenizer

STRANGE = "naïve 🦊  two  spaces\n\ttab </s> <image>日本"


def test_trained_tokenizer_writes_any_text_back(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(STRANGE)["input_ids"]
    assert tokenizer.decode(ids) == STRANGE
    assert tokenizer.eos_token_id in ids
    assert tokenizer.convert_tokens_to_ids("<image>") in ids


def test_trained_tokenizer_learns_merges_and_keeps_the_size() -> None:
    tokenizer = train_tokenizer(["a cat sat on a mat"] * 10, 266)
    assert len(tokenizer) == 266
    assert len(tokenizer(" cat")["input_ids"]) < 4
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_trained_tokenizer_loads_by_path_alone(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast
    assert loaded(STRANGE)["input_ids"] == tokenizer(STRANGE)["input_ids"]
    assert (loaded.pad_token, loaded.eos_token) == ("<pad>", "</s>")
    assert "<image>" in loaded.all_special_tokens


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 259"):
        train_tokenizer(["a"], 258)


def test_prepare_adds_what_is_missing_once(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    assert prepare_tokenizer(bare, "<|picture|>") == 1
    assert bare.pad_token == "<pad>"
    assert prepare_tokenizer(bare, "<|picture|>") == 0
    assert len(bare("<|picture|><|picture|>")["input_ids"]) == 2


def test_prepare_never_pads_with_the_end_mark(tokenizer: PreTrainedTokenizerFast) -> None:
    shared = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", pad_token="</s>", extra_special_tokens=["<x>"]
    )
    prepare_tokenizer(shared)
    assert shared.pad_token_id != shared.eos_token_id
    assert {"<image>", "<x>"} <= set(shared.all_special_tokens)
