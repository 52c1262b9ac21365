"""Tiny parts for the data room: a trained tokenizer, a 28 px image processor, pictures, and golden texts."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import CLIPImageProcessor, CodeGenTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

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
    """As the `tokenizer.json` of Llama-2 and Vicuna: a space in front of every stretch between special tokens."""
    pytest.importorskip("google.protobuf", reason="reading a SentencePiece model needs protobuf")
    from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=generate_merges(vocab), byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=eos_token, unk_token="<unk>", pad_token=None
    )
