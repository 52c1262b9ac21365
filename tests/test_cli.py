"""The command as its users meet it: exit status, sentences, no tracebacks."""

import io
import json
import sys
from pathlib import Path

import pytest

import moe_llava
from moe_llava.checkpoint.folder import save_model
from moe_llava.cli import main
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> str:
    folder = tiny.folder / "cli-model"
    folder.mkdir()
    save_model(folder, *build_stage(load_recipe(tiny.recipe), "align"))
    return str(folder)


def test_public_names() -> None:
    assert all(hasattr(moe_llava, name) for name in moe_llava.__all__)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["chat", "/nowhere", "--prompt", "a"], "is not a checkpoint"),
        (["train", "/nowhere.toml"], "No such file"),
        (["inspect", "/nowhere.toml"], "No such file"),
        (["inspect", "/nowhere"], "Give a folder with a config.json"),
        (["data", "check", "/nowhere.json"], "nowhere.json"),
        (["score", "vqa", "--predictions", "a", "--data", "b"], "vqa"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    captured = capfd.readouterr()
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["chat"], ["train", "a.toml", "stray"], ["train", "a.toml", "--seed"], ["env", "--x", "1"]],
)
def test_wrong_usage_is_status_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_json_is_all_that_is_printed(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", model, "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["parameters"]["total"] == summary["parameters"]["activated"]


def test_dry_run_shows_every_stage(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny.recipe), "--dry-run"]) == 0
    printed = capfd.readouterr().out
    assert "align" in printed
    assert "sparsify" in printed
    assert "router" in printed
    assert not (tiny.folder / "run").exists()


def test_chat_answers_a_file_of_the_users(model: str, tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    picture = str(tiny.folder / "images" / "red.png")
    arguments = ["chat", model, "--image", picture, "--prompt", "What colour is it?", "--max-new-tokens", "4"]
    assert main(arguments) == 0
    assert main(["chat", model, "--image", "/nowhere.png", "--prompt", "What?"]) == 1
    assert "nowhere.png" in capfd.readouterr().err
    assert main(["chat", model, "--image", str(tiny.recipe), "--prompt", "What?"]) == 1
    assert "recipe.toml" in capfd.readouterr().err


def test_a_conversation_ends_with_an_empty_line(
    model: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("What colour is it?\nAnd now?\n\nnever read\n"))
    arguments = ["chat", model, "--image", str(tiny.folder / "images" / "red.png"), "--max-new-tokens", "4"]
    assert main(arguments) == 0
    assert capfd.readouterr().err == ""


def test_data_check_lists_problems_and_fails(tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tiny.folder / "train.json")]) == 0
    rows = json.loads((tiny.folder / "train.json").read_text())
    rows[0]["image"] = "gone.png"
    del rows[1]["conversations"]
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(rows, indent=1))
    assert main(["data", "check", str(broken), "--images", str(tiny.folder)]) == 1
    printed = capfd.readouterr().out
    assert "broken.json:2" in printed
    assert "gone.png" in printed
    assert "conversations" in printed


def test_data_preview_marks_what_is_supervised(model: str, tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "preview", str(tiny.folder / "train.json"), "--limit", "1"]) == 0
    assert "It is red." in capfd.readouterr().out
    assert main(["data", "preview", str(tiny.folder / "train.json"), "--limit", "1", "--model", model]) == 0
    assert "<image> x 4" in capfd.readouterr().out
