"""Surgery from folder to folder: the result is a checkpoint like any other."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import moe_llava
from moe_llava.checkpoint.folder import load_model, save_model
from moe_llava.cli import main
from moe_llava.recipe import load_recipe
from moe_llava.routing.operate import halves
from moe_llava.routing.score import read_samples
from moe_llava.train.build import build_stage
from tests.routing.planted import planted_samples
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def model(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse checkpoint whose experts differ."""
    root = tmp_path_factory.mktemp("surgery")
    for name in ("align", "sparsify"):
        overrides = {"output": str(root), "stages.sparsify.sparsify.noise": "0.5"}
        (root / name).mkdir()
        save_model(root / name, *build_stage(load_recipe(tiny.recipe, overrides), name))
    return root / "sparsify"


def operate(model: Path, out: Path, tiny: Tiny, *arguments: str) -> int:
    return main(
        ["surgery", str(model), str(out), *arguments, "--data", str(tiny.folder / "train.json"), "--limit", "8"]
    )


@pytest.mark.parametrize(
    "arguments, experts",
    [
        (["prune", "--experts", "3", "--by", "reap"], 3),
        (["prune", "--experts", "2", "--by", "random", "--recalibrate-steps", "3"], 2),
        (["merge", "--experts", "2"], 2),
        (["clone"], 8),
        (["clone", "--add", "1"], 5),
        (["rebase", "--rank", "2", "--recalibrate-steps", "3"], 4),
        (["rebase", "--share", "0.05"], 4),
    ],
)
def test_the_result_answers_evaluates_and_trains(
    model: Path, tiny: Tiny, tmp_path: Path, arguments: list[str], experts: int, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    recalibrate = "--recalibrate-steps" in arguments
    extra = ["--recalibrate", str(tiny.folder / "train.json")] if recalibrate else []
    assert operate(model, out, tiny, *arguments, *extra, "--json") == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures == json.loads((out / "surgery.json").read_text())
    assert figures["experts"] == {"before": 4, "after": experts}
    sign = 1 if experts > 4 else -1
    for name in ("weight_bytes",) if experts == 4 else ("parameters", "weight_bytes"):
        assert (figures["after"][name] - figures["before"][name]) * sign > 0
    assert figures["before"]["milliseconds"] > 0
    assert not list(out.glob(".*"))
    picture = tiny.folder / "images" / "red.png"
    assert isinstance(moe_llava.load(out).chat("What colour is it?", images=picture), str)
    questions = str(tiny.folder / "questions.jsonl")
    assert main(["eval", str(out), "--questions", questions, "--out", str(tmp_path / "scores")]) == 0
    if not recalibrate:
        return
    trained = [f"--stages.sparsify.starts_from={out}", "--stages", "sparsify", f"--output={tmp_path / 'run'}"]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tiny.recipe.read_text().replace("sparsify = { num_experts = 4, top_k = 2 }", ""))
    assert main(["train", str(recipe), *trained]) == 0
    assert load_model(tmp_path / "run" / "sparsify")[0].config.text_config.num_experts == experts


def test_recalibration_changes_the_routers_and_nothing_else(model: Path, tiny: Tiny, tmp_path: Path) -> None:
    more = ["--recalibrate", str(tiny.folder / "train.json"), "--recalibrate-steps", "3"]
    assert operate(model, tmp_path / "plain", tiny, "prune", "--experts", "3") == 0
    assert operate(model, tmp_path / "tuned", tiny, "prune", "--experts", "3", *more) == 0
    plain, tuned = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "tuned"))
    changed = {name for name in plain if not torch.equal(plain[name], tuned[name])}
    assert changed == {name for name in plain if ".mlp.gate." in name}
    assert (tmp_path / "tuned" / "recalibration.jsonl").is_file()


def test_a_compressed_folder_is_what_it_says(model: Path, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "whole"
    assert operate(model, out, tiny, "rebase", "--share", "1.0") == 0
    before, after = load_model(model)[0], load_model(out)[0]
    assert all(
        torch.allclose(tensor, after.state_dict()[name], atol=1e-6) for name, tensor in before.state_dict().items()
    )
    assert after.generation_config.eos_token_id == before.generation_config.eos_token_id
    with pytest.raises(OSError, match=r"model\.safetensors"):
        moe_llava.MoeLlavaForConditionalGeneration.from_pretrained(out)


def test_a_sweep_draws_and_tells(model: Path, tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    assert operate(model, out, tiny, "sweep", "--random-seeds", "2", "--json") == 0
    points = json.loads(capfd.readouterr().out)["points"]
    lines = (out / "sweep.csv").read_text().splitlines()
    assert len(points) == len(lines) - 1
    assert sum(point["method"] == "prune at random" for point in points) == 6
    assert {point["setting"] for point in points if point["method"] == "merge"} == {
        f"{n} of 4 experts" for n in (1, 2, 3)
    }
    for name in ("sweep.png", "sweep.svg"):
        assert (out / name).stat().st_size > 5000
    assert operate(model, out, tiny, "sweep") == 1
    assert "choose another folder" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["prune", "--experts", "5"], "impossible"),
        (["prune", "--experts", "2", "--by", "fame"], "unknown"),
        (["merge", "--experts", "0"], "impossible"),
        (["rebase", "--rank", "999"], "impossible"),
        (["prune", "--experts", "1", "--recalibrate", "x.json"], "nothing to choose"),
    ],
)
def test_mistakes_are_one_sentence(
    model: Path, tiny: Tiny, tmp_path: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert operate(model, tmp_path / "out", tiny, *arguments) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_used_folder_and_a_dense_model_are_refused(
    model: Path, tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("")
    assert operate(model, tmp_path, tiny, "clone") == 1
    assert "choose another folder" in capfd.readouterr().err
    assert operate(model.parent / "align", tmp_path / "new", tiny, "clone") == 1
    assert "dense" in capfd.readouterr().err


def test_what_chooses_does_not_score(tmp_path: Path, tiny: Tiny) -> None:
    chosen_by, scored = halves(planted_samples(tmp_path))
    assert not {one.group for one in chosen_by} & {one.group for one in scored}
    assert len(chosen_by) + len(scored) == 88
    with pytest.raises(ValueError, match="give more"):
        halves(read_samples(tiny.folder / "questions.jsonl")[:1])
