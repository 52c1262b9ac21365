"""The bench as its users run it, in miniature; and a DeepSpeed that is played by a script."""

import json
import sys
from pathlib import Path

import pytest
import torch

from moe_llava.bench import models, train
from moe_llava.bench.block import Case, Shape
from moe_llava.bench.block import measure as measure_block
from moe_llava.bench.loading import measure as measure_loading
from moe_llava.bench.memory import fresh
from moe_llava.bench.peer import DeepSpeed
from moe_llava.bench.timing import Spread, Timings, interleave
from moe_llava.cli import main

SMALL = {
    "model_type": "stablelm",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
CPU = torch.device("cpu")


def test_runs_take_turns_and_ratios_are_of_one_round() -> None:
    order: list[str] = []
    clock = iter(range(100))

    def run(name: str) -> float:
        order.append(name)
        return float(next(clock))

    timings = interleave({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert timings.seconds == {"a": [2.0, 4.0], "b": [3.0, 5.0]}
    assert Timings({"a": [1.0, 2.0, 40.0], "b": [2.0, 4.0, 80.0]}).ratio("b", "a") == Spread(2.0, 2.0, 2.0)


def test_the_block_has_every_kernel_beside_the_floor() -> None:
    rows = measure_block(
        Shape(16, 32), [Case(1, torch.float32, False), Case(4, torch.float32, True)], rounds=1, device=CPU
    )
    assert set(rows[0]["runs"]) == {"floor", "reading", "ours", "grouped_mm", "eager", "packed"}
    assert rows[0]["layers"] > 1 and rows[1]["layers"] == 1
    assert all(run["ratio"]["median"] > 0 for name, run in rows[1]["runs"].items() if name != "floor")


def test_a_peer_answers_through_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, sys\n"
        "print(json.dumps({'deepspeed': '0'}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    job = json.loads(line)\n"
        "    print(json.dumps({'seconds': 2.5, 'bytes': 7} if job['case'] in ('run', 'memory') else {}), flush=True)\n"
    )
    monkeypatch.setattr("moe_llava.bench.peer.WORKER", worker)
    monkeypatch.setattr("moe_llava.bench.train.fresh", lambda work, *arguments: work(*arguments))
    peer = DeepSpeed(sys.executable)
    rows = measure_block(Shape(16, 32), [Case(4, torch.float32, True)], rounds=2, device=CPU, deepspeed=peer)
    steps = train.measure(
        train.Decoder(Shape(16, 32), 2, 2, 32),
        [train.Batch(1, 8, torch.float32)],
        rounds=1,
        device=CPU,
        deepspeed=peer,
    )
    peer.close()
    assert rows[0]["runs"]["deepspeed"]["seconds"]["median"] == 2.5
    assert steps[0]["runs"]["deepspeed"]["tokens_per_second"] == pytest.approx(8 / 2.5)
    assert {"floor", "ours", "dense stage II"} <= set(steps[0]["runs"])
    assert steps[0]["runs"]["deepspeed"]["peak_bytes"] == 7
    assert all("peak_bytes" in run for run in steps[0]["runs"].values())


def test_a_steps_memory_is_what_trains_and_its_optimizer() -> None:
    decoder, batch = train.Decoder(Shape(512, 2048), 2, 4, 64), train.Batch(1, 8, torch.float32)
    held = fresh(train.step_bytes, decoder, batch, "ours", "cpu")
    # Four experts and one dense network: each number with its gradient and two moments.
    trained = 5 * (3 * 512 * 2048) * 4 * 4
    assert trained < held < 1.6 * trained


def test_loading_is_beside_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.SHAPES, "small", SMALL)
    monkeypatch.setattr("moe_llava.bench.loading.fresh", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(models, "TOWER", models.TOWER.__class__(**SMALL_TOWER))
    row = measure_loading("small", rounds=1, folder=tmp_path, quantize="int8")
    assert row["weight_bytes"] > 0 and row["runs"]["opening"]["ratio"]["median"] > 0
    assert not list(tmp_path.iterdir())


SMALL_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_the_command_writes_its_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "report.json"
    arguments = ["bench", "block", "--profile", "quick", "--tokens", "1,2", "--dtypes", "float32", "--rounds", "1"]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capfd.readouterr().out
    assert "times the floor" in printed and "packed / reading" in printed
    report = json.loads(out.read_text())
    assert report["machine"]["read_per_second"]["median"] > 0 and len(report["block"]) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["speed"], "no part of the bench"),
        (["block", "--tokens", "many"], "whole numbers"),
        (["block", "--tokens", "0"], "at least 1"),
        (["block", "--deepspeed", "/nowhere/python"], "no such file"),
        (["answer", "--shapes", "gpt"], "no shape of the bench"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 1
    assert message in capfd.readouterr().err
