"""Tokenizers come from a checkpoint's files, run no code of theirs, and give the original's ids."""

import base64
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, CodeGenTokenizer, Qwen2Tokenizer

from moe_llava import Decoding, load, upcycle
from moe_llava.checkpoint.original import convert
from moe_llava.checkpoint.original.families import FAMILIES
from moe_llava.checkpoint.original.tokenizer import _CUTS, TIKTOKEN_FILES, read_tokenizer, tiktoken_backend
from moe_llava.data import MoeLlavaProcessor, train_tokenizer
from tests.checkpoint.published import original_config, original_names, write_original, write_tower
from tests.data.test_processor import TEMPLATE_OF, _encoded_as_the_original
from tests.tiny import tiny_dense

PADS = [("qwen.tiktoken", "qwen", "<|extra_0|>"), ("arcade100k.tiktoken", "stablelm", "<|reg0|>")]
TEXTS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.",
    "I'll say it's 12345.678, WE'RE \t\n\n  here?!  \r\n ",
    "Ünïcödé e\u0301 ﬁ 你好世界 привет 🙂👩‍👩‍👧 ½ ³",
    "aaaaaaa aaaa  aa   ....------////     ",
    "<|endoftext|> and <|im_start|>user\nHi<|im_end|>",
    "",
]


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """A small vocabulary of bytes and merges, ranked in the order in which they were learnt."""
    learnt = train_tokenizer([*TEXTS * 3, "the cat sat on the mat that the rat had " * 5], 420)
    letters = {token: n for token, n in learnt.get_vocab().items() if token not in learnt.all_special_tokens}
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    back = {letter: byte for byte, letter in bytes_to_unicode().items()}
    ordered = sorted(letters, key=letters.__getitem__)
    return {bytes(back[letter] for letter in token): rank for rank, token in enumerate(ordered)}


def write_ranks(path: Path, ranks: dict[bytes, int]) -> None:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))


@pytest.mark.parametrize("file", TIKTOKEN_FILES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_tiktoken_vocabulary_gives_tiktoken_s_ids(
    file: str, text: str, ranks: dict[bytes, int], tmp_path: Path
) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    first, special = TIKTOKEN_FILES[file]
    numbers = {token: first + number for number, token in enumerate(special)}
    oracle = tiktoken.Encoding("oracle", pat_str=_CUTS, mergeable_ranks=ranks, special_tokens=numbers)
    write_ranks(tmp_path / file, ranks)
    ours = tiktoken_backend(tmp_path / file, first, special)
    import unicodedata

    text = unicodedata.normalize("NFC", text)  # as the published tokenizers do first
    expected = oracle.encode(text, allowed_special="all")
    assert ours.encode(text, add_special_tokens=False).ids == expected
    assert ours.decode(expected, skip_special_tokens=False) == text


def test_merges_are_tiktoken_s_where_many_tokens_overlap(tmp_path: Path) -> None:
    """Random words of two letters over a vocabulary of their random joints."""
    tiktoken = pytest.importorskip("tiktoken")
    draw = random.Random(0)
    ranks = {bytes([byte]): byte for byte in range(256)}
    letters = [b"a", b"b"]
    while len(ranks) < 320:
        joint = draw.choice(letters) + draw.choice(letters)
        if joint not in ranks and len(joint) < 12:
            ranks[joint] = len(ranks)
            letters.append(joint)
    write_ranks(tmp_path / "qwen.tiktoken", ranks)
    ours = tiktoken_backend(tmp_path / "qwen.tiktoken", 1000, ())
    oracle = tiktoken.Encoding("oracle", pat_str=_CUTS, mergeable_ranks=ranks, special_tokens={})
    for _ in range(200):
        text = "".join(draw.choices("ab", k=draw.randint(1, 60)))
        assert ours.encode(text, add_special_tokens=False).ids == oracle.encode(text)


def test_special_tokens_have_the_published_ids(ranks: dict[bytes, int], tmp_path: Path) -> None:
    """As the published tokenizers of Qwen and StableLM-2 number them."""
    published = {
        "qwen.tiktoken": {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|extra_0|>": 151646},
        "arcade100k.tiktoken": {"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_pad|>": 100261},
    }
    published["qwen.tiktoken"]["<|extra_204|>"] = 151850
    published["arcade100k.tiktoken"] |= {"<|endofprompt|>": 100276, "<|im_end|>": 100278, "<|reg0|>": 100280}
    published["arcade100k.tiktoken"] |= {"<|extra0|>": 100288}
    for file, tokens in published.items():
        write_ranks(tmp_path / file, ranks)
        vocabulary = tiktoken_backend(tmp_path / file, *TIKTOKEN_FILES[file]).get_vocab()
        assert {token: vocabulary[token] for token in tokens} == tokens


@pytest.mark.parametrize(("file", "family", "pad"), PADS)
def test_remote_code_beside_the_file_is_not_run(
    file: str, family: str, pad: str, ranks: dict[bytes, int], tmp_path: Path
) -> None:
    write_ranks(tmp_path / file, ranks)
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit('executed')")
    mapped = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(mapped))
    config = AutoConfig.for_model("llama", vocab_size=151936)
    tokenizer, warning = read_tokenizer(tmp_path, FAMILIES[family], config)
    assert warning == ""
    assert tokenizer is not None
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", pad)
    last = TIKTOKEN_FILES[file][0] + len(TIKTOKEN_FILES[file][1])
    assert tokenizer.get_vocab()["<image>"] == last
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(TEXTS[1])["input_ids"] == tokenizer(TEXTS[1])["input_ids"]


def test_recorded_rows_with_tokenizers_read_from_files(fixtures: Path, tmp_path: Path) -> None:
    """Prompts, ids and labels of every row in which the original does not warn, through saved processors."""
    pytest.importorskip("google.protobuf", reason="reading a SentencePiece model needs protobuf")
    folder = fixtures / "golden" / "text"
    compared = 0
    loaded: dict[tuple[str, str], MoeLlavaProcessor] = {}
    for row in json.loads((folder / "preprocess.json").read_text()):
        if row["warning"] or row["version"] not in TEMPLATE_OF:
            continue
        template, eos_token = TEMPLATE_OF[row["version"]]
        key = (row["tokenizer"], template + eos_token)
        if key not in loaded:
            source = tmp_path / f"source{len(loaded)}"
            shutil.copytree(folder / row["tokenizer"], source)
            (source / "special_tokens_map.json").write_text(json.dumps({"eos_token": eos_token}))
            family = FAMILIES[{"vicuna": "llama", "plain": "llama"}.get(template, template)]
            tokenizer, _ = read_tokenizer(source, family, AutoConfig.for_model("llama", vocab_size=2000))
            assert tokenizer is not None
            assert tokenizer.eos_token == eos_token
            MoeLlavaProcessor(None, tokenizer, chat_template=template).save_pretrained(tmp_path / f"saved{len(loaded)}")
            loaded[key] = MoeLlavaProcessor.from_pretrained(tmp_path / f"saved{len(loaded)}")
        assert _encoded_as_the_original(loaded[key], row) == (row["input_ids"], row["labels"]), row["case"]
        compared += 1
    assert compared == 86


def test_a_converted_checkpoint_keeps_its_tokenizer_json_and_chats(tmp_path: Path) -> None:
    write_tower(tmp_path / "tower")
    model = upcycle(tiny_dense("llama", vocab_size=330), noise=0.5)
    source = write_original(tmp_path / "source", original_names(model), original_config(model, str(tmp_path / "tower")))
    learnt = train_tokenizer(TEXTS, 320)
    learnt.backend_tokenizer.save(str(source / "tokenizer.json"))
    (source / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    done = convert(source, tmp_path / "out")
    assert done.warnings == []
    processor = MoeLlavaProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer(TEXTS[0])["input_ids"] == learnt(TEXTS[0])["input_ids"]
    assert processor.tokenizer.pad_token_id != processor.tokenizer.eos_token_id
    assert processor.image_processor.do_pad
    decoding = Decoding(max_new_tokens=4)
    answer = load(tmp_path / "out").chat("What is it?", Image.new("RGB", (50, 30), "teal"), decoding=decoding)
    assert answer == load(tmp_path / "out").chat("What is it?", Image.new("RGB", (50, 30), "teal"), decoding=decoding)
    assert load(tmp_path / "out").engine.model.generation_config.eos_token_id == processor.stop_token_ids


def test_a_vocabulary_without_room_for_padding_is_refused(ranks: dict[bytes, int], tmp_path: Path) -> None:
    write_ranks(tmp_path / "qwen.tiktoken", ranks)
    with pytest.raises(ValueError, match="no token for padding among the model's 100"):
        read_tokenizer(tmp_path, FAMILIES["qwen"], AutoConfig.for_model("llama", vocab_size=100))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("qwen.tiktoken", "not a vocabulary at all", r"qwen\.tiktoken is no tiktoken vocabulary"),
        ("arcade100k.tiktoken", "", r"arcade100k\.tiktoken is no complete tiktoken vocabulary"),
        ("tokenizer.json", "{", r"tokenizer\.json cannot be read"),
        ("tokenizer.model", "x", r"tokenizer\.model cannot be read"),
        ("vocab.json", "{", r"vocab\.json cannot be read"),
    ],
)
def test_broken_files_are_named(file: str, content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    (tmp_path / "merges.txt").write_text("a b")
    with pytest.raises(ValueError, match=sentence):
        read_tokenizer(tmp_path, FAMILIES["qwen1_5"], AutoConfig.for_model("llama", vocab_size=100))


@pytest.mark.parametrize(
    ("family", "absent"),
    [
        ("qwen", r"lacks qwen\.tiktoken \(and"),
        ("stablelm", r"lacks arcade100k\.tiktoken \(and"),
        ("phi", r"lacks merges\.txt \(and"),
        ("mistral", r"lacks tokenizer\.model \(and"),
    ],
)
def test_the_absent_file_is_named(family: str, absent: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    tokenizer, warning = read_tokenizer(tmp_path, FAMILIES[family], AutoConfig.for_model("llama", vocab_size=100))
    assert tokenizer is None
    assert re.search(absent, warning)


def test_vocabulary_and_merges_are_read_as_their_family_cuts(tmp_path: Path) -> None:
    """Qwen1.5 cuts between digits, Phi does not."""
    learnt = train_tokenizer(["12 12 12 WE'RE WE'RE we're"] * 9, 280)
    bpe = json.loads(learnt.backend_tokenizer.to_str())["model"]
    tokens = [token for token in bpe["vocab"] if token not in learnt.all_special_tokens] + ["<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in bpe["merges"]))
    config = AutoConfig.for_model("llama", vocab_size=400)
    text = "12 WE'RE"
    for family, kind in (("qwen1_5", Qwen2Tokenizer), ("phi", CodeGenTokenizer)):
        tokenizer, _ = read_tokenizer(tmp_path, FAMILIES[family], config)
        assert tokenizer is not None
        assert tokenizer(text)["input_ids"] == kind.from_pretrained(tmp_path)(text)["input_ids"]
    assert "12" in learnt.tokenize(text)
    assert {"1", "2"} < set(read_tokenizer(tmp_path, FAMILIES["qwen1_5"], config)[0].tokenize(text))
    assert "12" in read_tokenizer(tmp_path, FAMILIES["phi"], config)[0].tokenize(text)


@pytest.mark.parametrize("offset", [0, 1])
def test_added_tokens_stand_where_the_file_says(offset: int, ranks: dict[bytes, int], tmp_path: Path) -> None:
    write_ranks(tmp_path / "qwen.tiktoken", ranks)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|new|>": 151851 + offset}))
    config = AutoConfig.for_model("llama", vocab_size=151936)
    if offset:
        with pytest.raises(ValueError, match=r"puts '<\|new\|>' at 151852, but it comes to 151851"):
            read_tokenizer(tmp_path, FAMILIES["qwen"], config)
    else:
        tokenizer, _ = read_tokenizer(tmp_path, FAMILIES["qwen"], config)
        assert tokenizer is not None
        assert tokenizer.get_vocab()["<|new|>"] == 151851
