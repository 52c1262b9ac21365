"""Whole runs from the command line: complete folders, resumption, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import moe_llava
from tests.tiny import Tiny

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
from moe_llava.cli import main
sys.exit(main(sys.argv[1:]))
"""


def command(tiny: Tiny, output: Path, *extra: str, file_limit: int | None = None) -> list[str]:
    start = ["-c", LIMITED.format(file_limit)] if file_limit else ["-m", "moe_llava"]
    return [sys.executable, *start, "train", str(tiny.recipe), "--output", str(output), *extra]


def run(tiny: Tiny, output: Path, *extra: str, file_limit: int | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(tiny, output, *extra, file_limit=file_limit),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


@pytest.fixture(scope="module")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of both stages and the report."""
    output = tmp_path_factory.mktemp("finished")
    done = run(tiny, output)
    assert done.returncode == 0, done.stderr
    assert "moe-llava chat" in done.stdout
    return output


def test_every_stage_is_a_complete_checkpoint(finished: Path, tiny: Tiny) -> None:
    for stage in ("align", "sparsify"):
        present = {path.name for path in (finished / stage).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.toml", "environment.json"} <= present
        assert {"trainables.json", "metrics.jsonl", "stage.json"} <= present
        assert not {"checkpoints", ".writing"} & present
        vlm = moe_llava.load(finished / stage)
        assert isinstance(vlm.chat("What colour is it?", images=tiny.folder / "images" / "red.png"), str)


def test_the_log_tells_language_loss_balance_and_load(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "sparsify" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert 1.0 <= line["balance"] <= 4.0
        assert 0.25 <= line["max_load"] <= 0.5
        assert {"language_loss", "dead_experts", "router_entropy", "tokens_per_second", "learning_rate"} <= line.keys()
    assert "balance" not in json.loads((finished / "align" / "metrics.jsonl").read_text().splitlines()[0])


def test_tensorboard_is_told_and_what_it_was_told_stays(tiny: Tiny, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = run(tiny, tmp_path, "--stages", "align", "--trackers", '["tensorboard"]')
    assert done.returncode == 0, done.stderr
    events = event_accumulator.EventAccumulator(str(tmp_path / "align" / "tensorboard")).Reload()
    logged = [json.loads(line) for line in (tmp_path / "align" / "metrics.jsonl").read_text().splitlines()]
    told = [(event.step, event.value) for event in events.Scalars("train/language_loss")]
    assert told == [(line["step"], pytest.approx(line["language_loss"])) for line in logged]


def test_only_what_the_recipe_names_has_changed(finished: Path) -> None:
    align, sparse = (load_file(finished / stage / "model.safetensors") for stage in ("align", "sparsify"))
    changed = {name for name in align.keys() & sparse.keys() if not torch.equal(align[name], sparse[name])}
    assert changed == {name for name in align if "projector" in name or "language_model.layers.1.mlp." in name}
    groups = json.loads((finished / "sparsify" / "trainables.json").read_text())["groups"]
    assert [group["group"] for group in groups] == ["projector", "ffn", "experts", "router"]


def test_the_report_sets_models_side_by_side(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["colours"].keys() == {"dense", "sparse", "n"}
    assert report["colours"]["n"] == 4


@pytest.mark.parametrize("stage, checkpoint", [("align", 2), ("sparsify", 4)])
def test_killed_and_resumed_it_ends_with_the_same_weights(
    finished: Path, tiny: Tiny, tmp_path: Path, stage: str, checkpoint: int
) -> None:
    process = subprocess.Popen(
        command(tiny, tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seen = tmp_path / stage / "checkpoints" / f"checkpoint-{checkpoint}"
    while not seen.exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "sparsify" / "stage.json").exists()
    torn = tmp_path / stage / "checkpoints" / ".writing" / "checkpoint-99"
    torn.mkdir(parents=True, exist_ok=True)
    (torn / "__0_0.distcp").write_bytes(b"half")
    done = run(tiny, tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert "continues from" in done.stdout
    for name in ("align", "sparsify"):
        expected = load_file(finished / name / "model.safetensors")
        for key, tensor in load_file(tmp_path / name / "model.safetensors").items():
            assert torch.equal(tensor, expected[key]), key
        steps = [json.loads(line)["step"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert steps == [2, 4, 6]


def test_a_second_run_over_the_first_is_refused(finished: Path, tiny: Tiny) -> None:
    before = (finished / "align" / "model.safetensors").read_bytes()
    done = run(tiny, finished)
    assert done.returncode == 1
    assert "add --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert (finished / "align" / "model.safetensors").read_bytes() == before


def test_a_full_disk_says_so_and_keeps_the_last_checkpoint(finished: Path, tiny: Tiny, tmp_path: Path) -> None:
    assert run(tiny, tmp_path, "--stages", "align").returncode == 0
    stopped = run(tiny, tmp_path, "--stages", "sparsify", file_limit=60_000)
    assert stopped.returncode == 1
    assert "Could not write" in stopped.stderr
    assert "--resume" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert run(tiny, tmp_path, "--resume").returncode == 0
    expected = load_file(finished / "sparsify" / "model.safetensors")
    for key, tensor in load_file(tmp_path / "sparsify" / "model.safetensors").items():
        assert torch.equal(tensor, expected[key]), key


def test_an_output_that_cannot_be_written_is_named(tiny: Tiny) -> None:
    done = run(tiny, tiny.folder / "train.json" / "run")
    assert done.returncode == 1
    assert "Cannot write to" in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_data_stops_a_run_before_it_trains(tiny: Tiny, tmp_path: Path) -> None:
    rows = json.loads((tiny.folder / "train.json").read_text())
    rows[3]["conversations"][0]["value"] = "no picture here"
    broken = tiny.folder / "broken.json"
    broken.write_text(json.dumps(rows))
    data = ["--stages.align.data", f'[{{ path = "{broken}" }}]']
    done = run(tiny, tmp_path, "--stages", "align", *data)
    assert done.returncode == 1
    assert "broken.json" in done.stderr
    assert "<image>" in done.stderr
    assert not (tmp_path / "align" / "metrics.jsonl").exists()


def test_lora_trains_through_adapters_and_ends_merged(finished: Path, tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs moe-llava[lora]")
    train = "{ projector = 1e-3, experts = { lr = 1e-2, lora_rank = 2 }, router = 1e-3 }"
    start = ["--stages.sparsify.starts_from", str(finished / "align"), "--stages.sparsify.train", train]
    done = run(tiny, tmp_path, "--stages", "sparsify", *start)
    assert done.returncode == 0, done.stderr
    groups = json.loads((tmp_path / "sparsify" / "trainables.json").read_text())["groups"]
    assert groups[1] == {"group": "experts", "parameters": groups[1]["parameters"], "lr": 0.01, "lora_rank": 2}
    saved = load_file(tmp_path / "sparsify" / "model.safetensors")
    experts = [tensor for name, tensor in saved.items() if "experts" in name]
    assert not any("lora" in name for name in saved)
    assert all((tensor[0] != tensor[1]).any() for tensor in experts)
