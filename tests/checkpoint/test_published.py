"""A published model answers by its hub id: fetched, converted once, found again; off line the error says what to do."""

import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
from PIL import Image

import moe_llava
from moe_llava import Decoding
from moe_llava.checkpoint import hub, published
from moe_llava.checkpoint.zoo import BENCHMARKS, ZOO
from moe_llava.cli import main
from moe_llava.data import train_tokenizer
from moe_llava.model.config import moe_layers
from moe_llava.model.upcycle import upcycle
from tests.checkpoint.published import original_config, original_names, write_original, write_tower
from tests.tiny import tiny_dense

COMMIT = "0123456789" * 4
NAME = "LanguageBind/MoE-LLaVA-Phi2-2.7B-4e"
TEXTS = ["A chat between a curious user and an artificial intelligence assistant. USER: What is it? ASSISTANT: A cat."]


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub's client has on disk of MoE-LLaVA-Phi2-2.7B-4e: 32 layers deep, of tiny width, in two shards."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    write_tower(tmp_path / "tower")
    dense = tiny_dense("phi", vocab_size=400, num_hidden_layers=32, num_key_value_heads=4, partial_rotary_factor=0.5)
    model = upcycle(dense, noise=0.5)
    repository = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    config = original_config(model, str(tmp_path / "tower"))
    write_original(folder, original_names(model, tower=False), config, shards=2)
    bpe = json.loads(train_tokenizer(TEXTS, 300).backend_tokenizer.to_str())["model"]
    tokens = [token for token in bpe["vocab"] if token not in ("<pad>", "</s>", "<image>")] + ["<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in bpe["merges"]))
    (folder / "added_tokens.json").write_text(json.dumps({}))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_LLAVA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_hub_id_is_fetched_converted_once_and_answers(
    snapshot: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image, decoding = Image.new("RGB", (60, 40), "teal"), Decoding(max_new_tokens=3)
    vlm = moe_llava.load(NAME)
    assert moe_layers(vlm.engine.model.config.text_config) == tuple(range(0, 32, 2))
    answer = vlm.chat("What is it?", image, decoding=decoding)
    converted = list((cache / "converted").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in converted] == [NAME.replace("/", "--")]
    assert f"Converting {NAME}, once, into {converted[0]}" in caplog.text
    monkeypatch.setattr(published, "convert", lambda *_: pytest.fail("converted twice"))
    assert moe_llava.load(NAME).chat("What is it?", image, decoding=decoding) == answer
    assert moe_llava.load(converted[0]).chat("What is it?", image, decoding=decoding) == answer


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_code_is_never_fetched_and_bin_files_only_without_safetensors(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = ["config.json", "modeling.py", "pytorch_model.bin"] + ["model.safetensors"] * (kind == "safetensors")

    def download(_: str, allow_patterns: list[str]) -> str:
        for file in offered:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    hub.fetch("somebody/something")
    expected = {"config.json", "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_its_size_is_told_by_its_config_alone(snapshot: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in snapshot.glob("*.safetensors*"):
        path.unlink()
    for name in (NAME, str(snapshot)):
        assert main(["inspect", name, "--json"]) == 0
        printed = json.loads(capfd.readouterr().out)
        assert printed["parts"]["experts"] > printed["parts"]["ffn"] > 0
        assert printed["parameters"]["total"] > printed["parameters"]["activated"]


def test_a_folder_of_the_original_loads_by_its_path(snapshot: Path, cache: Path) -> None:
    assert moe_llava.load(snapshot).chat("What is it?", decoding=Decoding(max_new_tokens=2)) is not None
    before = set((cache / "converted").iterdir())
    (snapshot / "added_tokens.json").write_text("{} ")
    published.local_checkpoint(snapshot)
    assert len(set((cache / "converted").iterdir()) - before) == 1  # the folder has changed


def test_an_interrupted_conversion_leaves_nothing_in_the_cache(
    snapshot: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moe_llava.checkpoint.original.conversion.write_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        published.local_checkpoint(snapshot)
    assert not list((cache / "converted").glob("*"))


def test_off_line_the_error_says_what_to_fetch(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", NAME, "--prompt", "Hi"]) == 1
    message = capfd.readouterr().err
    assert f"hf download {NAME}" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("/nowhere/at/all", "no such folder"), ("runs/tiny/gone", "no such folder"), ("tiny", "no such folder")],
)
def test_names_that_are_nothing(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        published.local_checkpoint(name)


def test_a_conversion_without_tokenizer_cannot_chat_and_says_why(
    snapshot: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (snapshot / "vocab.json").unlink()
    assert main(["chat", str(snapshot), "--prompt", "Hi"]) == 1
    assert "has no tokenizer" in capfd.readouterr().err


def test_the_zoo_lists_every_published_model(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    printed = capfd.readouterr().out
    for model in ZOO:
        assert model.hugging_face in printed
        assert model.modelscope is None or model.modelscope in printed
    assert main(["zoo", "--json"]) == 0
    models = json.loads(capfd.readouterr().out)["models"]
    assert len({model["hugging_face"] for model in models}) == len(models) == 19
    by_stage: Callable[[str], list] = lambda stage: [model for model in models if model["stage"] == stage]  # noqa: E731
    assert [len(by_stage(stage)) for stage in ("III", "II", "I", "LLaVA")] == [5, 5, 5, 4]
    assert all(tuple(model["scores"]) == BENCHMARKS for model in by_stage("III") + by_stage("LLaVA"))
    phi = next(model for model in models if model["hugging_face"] == NAME)
    assert phi["modelscope"] == "PKU-YuanLab/MoE-LLaVA-Phi2-2.7B-4e"
    assert (phi["activated_billions"], phi["scores"]["MME"], phi["scores"]["POPE"]) == (3.6, 1423.0, 86.3)
