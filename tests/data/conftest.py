"""Tiny parts for the data room: a trained tokenizer, a 28 px image processor, pictures, and golden texts."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import CLIPImageProcessor, CodeGenTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moe_llava.checkpoint.original.tokenizer import sentencepiece_backend
from moe_llava.data import Conversation, Message, MoeLlavaProcessor, prepare_tokenizer, train_tokenizer

TEXTS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: What is in the picture? ASSISTANT: A cat sits on a mat.",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 320)


@pytest.fixture(scope="session")
def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


@pytest.fixture(scope="session")
def processor(tokenizer: PreTrainedTokenizerFast, image_processor: CLIPImageProcessor) -> MoeLlavaProcessor:
    return MoeLlavaProcessor(image_processor, tokenizer, chat_template="vicuna", image_seq_length=4)


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """`picture("red")` -> a PNG of that colour."""

    def make(color: str, name: str | None = None) -> Path:
        path = tmp_path / (name or f"{color}.png")
        Image.new("RGB", (30, 30), color).save(path)
        return path

    return make


@pytest.fixture
def ask() -> Callable[..., Conversation]:
    """`ask(question, answer, *images)` -> a conversation of one turn."""

    def make(question: str, answer: str, *images: Path, source: str = "train.json:1") -> Conversation:
        return Conversation("0", (Message("user", question), Message("assistant", answer)), images, source)

    return make


@pytest.fixture(scope="session")
def golden(fixtures: Path) -> Callable[[str], Any]:
    """`golden("prompts.json")` -> what the original's text side gave."""

    def read(name: str) -> Any:
        return json.loads((fixtures / "golden" / "text" / name).read_text(encoding="utf-8"))

    return read


@pytest.fixture(scope="session")
def golden_tokenizer(fixtures: Path) -> Callable[[str, str], PreTrainedTokenizerBase]:
    """`golden_tokenizer("bpe_phi", "<|endoftext|>")` -> a tiny tokenizer of the recordings, as a fast one."""

    @cache
    def load(name: str, eos_token: str) -> PreTrainedTokenizerBase:
        folder = fixtures / "golden" / "text" / name
        tokenizer = (
            _sentencepiece(folder, eos_token) if name == "sp_llama" else CodeGenTokenizer.from_pretrained(folder)
        )
        prepare_tokenizer(tokenizer)
        return tokenizer

    return load


def _sentencepiece(folder: Path, eos_token: str) -> PreTrainedTokenizerFast:
    pytest.importorskip("google.protobuf", reason="reading a SentencePiece model needs protobuf")
    return PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece_backend(folder / "tokenizer.model"),
        bos_token="<s>",
        eos_token=eos_token,
        unk_token="<unk>",
        pad_token=None,
    )
