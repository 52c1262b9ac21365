"""Tokenizers of published checkpoints, built from their files as fast ones, without running code from there."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from moe_llava.checkpoint.original.families import Family
from moe_llava.checkpoint.tables import read_table
from moe_llava.data.tokenizer import prepare_tokenizer

# How Qwen and Arcade-100k cut a text before merging (their published tokenizers state it).
_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT = ("<|im_start|>", "<|im_end|>")
_CODE = "gh_stars filename issue_start issue_comment issue_closed jupyter_start jupyter_text jupyter_code"
_CODE += " jupyter_output empty_output commit_before commit_msg commit_after reponame"
# File -> id of the first special token, and the special tokens in order.
TIKTOKEN_FILES: dict[str, tuple[int, tuple[str, ...]]] = {
    "qwen.tiktoken": (151643, ("<|endoftext|>", *_CHAT, *(f"<|extra_{n}|>" for n in range(205)))),
    "arcade100k.tiktoken": (
        100257,
        (
            "<|endoftext|>",
            *(f"<|fim_{part}|>" for part in ("prefix", "middle", "suffix", "pad")),
            *(f"<{name}>" for name in _CODE.split()),
            "<|endofprompt|>",
            *_CHAT,
            "<|pause|>",
            *(f"<|reg{n}|>" for n in range(8)),
            "<|extra0|>",
        ),
    ),
}
_STATED = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(
    folder: Path, family: Family, config: PreTrainedConfig
) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer of a folder, ready for images, or `None`; and a warning, empty if all is well.

    Raises:
        ValueError: a file is broken, or its ids do not fit the model's vocabulary.
    """
    tokenizer = _from_files(folder, family)
    if tokenizer is None:
        absent = [name for name in family.vocabulary if not (folder / name).is_file()]
        return None, (
            f"{folder} has no tokenizer, for it lacks {' and '.join(absent)} (and tokenizer.json): the result has "
            "weights and configuration only and cannot chat. Put the files of the original there and convert again."
        )
    if family.end_mark and family.end_mark in tokenizer.get_vocab():
        tokenizer.eos_token = family.end_mark
    _choose_pad(tokenizer, config)
    prepare_tokenizer(tokenizer)
    if len(set(tokenizer.get_vocab().values())) < len(tokenizer.get_vocab()):
        raise ValueError(f"The vocabulary of {folder} has gaps: two tokens share an id. Fetch its files again.")
    if tokenizer.pad_token_id >= config.vocab_size:
        raise ValueError(f"The tokenizer of {folder} has no token for padding among the model's {config.vocab_size}.")
    tokenizer.chat_template = None
    outside = [token for token, number in tokenizer.get_vocab().items() if number >= config.vocab_size]
    if strange := sorted({*outside} - {"<image>"}):
        return tokenizer, (
            f"{len(strange)} tokens of the tokenizer, such as {strange[0]!r}, lie outside the model's vocabulary of "
            f"{config.vocab_size}: a text with one of them fails."
        )
    return tokenizer, ""


def _from_files(folder: Path, family: Family) -> PreTrainedTokenizerBase | None:
    stated = _stated_tokens(folder)
    if (folder / "tokenizer.json").is_file():
        with _readable(folder / "tokenizer.json"):
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif found := next((name for name in TIKTOKEN_FILES if (folder / name).is_file()), None):
        backend = tiktoken_backend(folder / found, *TIKTOKEN_FILES[found])
        stated = {"eos_token": "<|endoftext|>"}
    elif (folder / "tokenizer.model").is_file():
        with _readable(folder / "tokenizer.model"):
            backend = sentencepiece_backend(folder / "tokenizer.model")
        stated = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | stated
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        with _readable(folder / "vocab.json"):
            return _with_added(family.byte_pairs.from_pretrained(folder), folder)
    else:
        return None
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **stated)
    return _with_added(tokenizer, folder)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what the tokenizers' library raises for a broken file into one sentence."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} cannot be read as a tokenizer ({error}): fetch it again.") from error


def _stated_tokens(folder: Path) -> dict[str, Any]:
    """Special tokens that special_tokens_map.json or tokenizer_config.json name."""
    stated: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            table = read_table(folder / name)
            for key in _STATED:
                token = table.get(key)
                token = token.get("content") if isinstance(token, dict) else token
                if token:
                    stated[key] = token
    return stated


def _with_added(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """Add the tokens of added_tokens.json at the ids that stand there."""
    if (folder / "added_tokens.json").is_file():
        added = read_table(folder / "added_tokens.json")
        known = tokenizer.get_vocab()
        for token, number in sorted(added.items(), key=lambda item: item[1]):
            if token not in known:
                tokenizer.add_tokens([AddedToken(token, normalized=False, special=token.startswith("<|"))])
                if (actual := tokenizer.get_vocab()[token]) != number:
                    raise ValueError(
                        f"{folder}/added_tokens.json puts {token!r} at {number}, but it comes to {actual}."
                    )
    return tokenizer


def _choose_pad(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """The pad token of the original: the one config.json names, the unknown token, or a spare one."""
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    spare = [token for token in ("<|extra_0|>", "<|reg0|>", "<pad>") if token in names.values()]
    candidates = [names.get(config.pad_token_id), tokenizer.unk_token, *spare]
    for token in candidates:
        if token is not None and token != tokenizer.eos_token:
            tokenizer.pad_token = token
            return


def tiktoken_backend(path: Path, first_special: int, special: tuple[str, ...]) -> Tokenizer:
    """A byte-level BPE that merges as tiktoken does: always the pair whose joint token has the lowest rank.

    Raises:
        ValueError: a line is no base64 token with its rank.
    """
    try:
        ranks = {
            base64.b64decode(token): int(rank)
            for token, rank in (line.split() for line in path.read_bytes().splitlines() if line)
        }
    except ValueError as error:
        raise ValueError(f"{path} is no tiktoken vocabulary ({error}): fetch it again.") from error
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError(f"{path} is no complete tiktoken vocabulary (it lacks single bytes): fetch it again.")
    letters = bytes_to_unicode()
    written = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [
        (written[token[:cut]], written[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in _cuts(token, ranks)
    ]
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    vocabulary |= {token: first_special + number for number, token in enumerate(special)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUTS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return backend


def _cuts(token: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Where a token can be cut into two tokens, by the ranks of the two."""
    cuts = [cut for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks]
    return sorted(cuts, key=lambda cut: (ranks[token[:cut]], ranks[token[cut:]]))


def sentencepiece_backend(path: Path) -> Tokenizer:
    """Llama's and Vicuna's BPE with BOS in front, as their published tokenizer.json writes it.

    A space stands in front of every stretch between special tokens.
    """
    try:
        from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

        proto = import_protobuf().ModelProto()
    except ImportError as error:
        raise ValueError("Reading tokenizer.model needs protobuf: pip install 'moe-llava[convert]'.") from error
    proto.ParseFromString(path.read_bytes())
    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=generate_merges(vocabulary), byte_fallback=True, fuse_unk=True, unk_token="<unk>"
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    return backend
