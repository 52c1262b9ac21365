"""One process, DDP, FSDP2, FSDP2 with expert parallelism: the same losses, metrics, answers and weights."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from moe_llava.checkpoint.folder import save_model
from moe_llava.model import MoeLlavaConfig
from moe_llava.recipe import Distributed, load_recipe
from moe_llava.train.build import build_stage
from moe_llava.train.layout import check_stage, distributed_config
from moe_llava.train.run import train
from moe_llava.train.trainer import checkpoints
from tests.tiny import Tiny, tiny_sparse
from tests.train.layouts import run

pytestmark = pytest.mark.xdist_group("layouts")  # their common runs are made once, by one worker

SCRIPT = Path(__file__).with_name("layouts.py")
LAYOUTS = ("ddp", "fsdp", "fsdp_ep")
TRIED = {"llama": LAYOUTS, "phi": ("fsdp_ep",)}  # experts with a gate, experts with biases
RESUMED = {  # where it stopped -> how it goes on
    "one-stopped": ("fsdp_ep", 2),
    "fsdp-stopped": ("fsdp", 2),
    "fsdp_ep-stopped": ("ddp", 1),
    "ddp-stopped": ("fsdp", 1),
}


def torchrun(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{SCRIPT.parents[2]}/src:{SCRIPT.parents[2]}"}
    return subprocess.Popen(command, env=environment, text=True, **options)


@pytest.fixture(scope="module")
def runs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `FAMILY/NAME` for every layout, for one process, and for what was stopped and went on."""
    folder = tmp_path_factory.mktemp("layouts")
    fields = {
        "stages.sparsify.evaluate": f'{{ path = "{tiny.folder}/questions.jsonl", every = 3, max_new_tokens = 3 }}',
        "stages.sparsify.sparsify.noise": "0.3",
        "stages.sparsify.sparsify.balance_coefficient": "1.0",
        "stages.sparsify.steps": "4",
        "stages.sparsify.micro_batch_size": "2",
        "stages.sparsify.log_every": "1",
    }
    tasks: list[dict[str, Any]] = []
    for family, layouts in TRIED.items():
        start = write_dense(tiny, family)
        overrides = {**fields, "stages.sparsify.starts_from": str(start)}
        run(str(tiny.recipe), f"{folder}/{family}/one", overrides)
        for layout in layouts:
            tasks.append(task(tiny, f"{folder}/{family}/{layout}", overrides, layout))
    llama = {**fields, "stages.sparsify.starts_from": str(tiny.folder / "dense-llama")}
    for name, (layout, count) in RESUMED.items():
        if count == 2:
            tasks.append(task(tiny, f"{folder}/llama/{name}", llama, layout, resume=True))
    (folder / "tasks.json").write_text(json.dumps(tasks))
    process = torchrun(str(SCRIPT), str(folder / "tasks.json"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    for name, (layout, count) in RESUMED.items():
        if count == 1:
            run(**task(tiny, f"{folder}/llama/{name}", llama, layout, resume=True))
    return folder


def task(tiny: Tiny, name: str, overrides: dict[str, str], layout: str, resume: bool = False) -> dict[str, Any]:
    fields = {**overrides, "distributed.layout": layout}
    return {"recipe": str(tiny.recipe), "name": name, "overrides": fields, "resume": resume}


def write_dense(tiny: Tiny, family: str) -> Path:
    """A dense start whose decoder is random enough that routers disagree."""
    fields = {"model.language.config.model_type": family}
    model, processor = build_stage(load_recipe(tiny.recipe, fields), "align")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tiny.folder / f"dense-{family}"
    folder.mkdir()
    save_model(folder, model, processor)
    return folder


CASES = [(family, layout) for family, layouts in TRIED.items() for layout in layouts] + [
    ("llama", name) for name in RESUMED
]


@pytest.mark.parametrize("family, name", CASES)
def test_layouts_end_with_the_same_weights(runs: Path, family: str, name: str) -> None:
    expected = load_file(runs / family / "one" / "sparsify" / "model.safetensors")
    actual = load_file(runs / family / name / "sparsify" / "model.safetensors")
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.allclose(actual[key], tensor, atol=1e-5), (key, (actual[key] - tensor).abs().max())


@pytest.mark.parametrize("family, name", CASES)
def test_layouts_log_the_same(runs: Path, family: str, name: str) -> None:
    expected, actual = lines(runs / family / "one"), lines(runs / family / name)
    assert len(expected) == len(actual) == 6  # four steps, two examinations
    for one, other in zip(expected, actual, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"tokens_per_second"}:
            assert other[key] == pytest.approx(one[key], abs=1e-5, rel=1e-5), key


def test_a_finished_folder_is_like_any_other(runs: Path) -> None:
    plain, sharded = runs / "llama" / "one" / "sparsify", runs / "llama" / "fsdp_ep" / "sparsify"
    assert {path.name for path in plain.iterdir()} == {path.name for path in sharded.iterdir()}
    assert json.loads((plain / "config.json").read_text()) == json.loads((sharded / "config.json").read_text())


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "sparsify" / "metrics.jsonl").read_text().splitlines()]


def test_words_are_fitted_once_for_all_processes(tiny: Tiny, tmp_path: Path) -> None:
    fields = {"model.projector": "vocabulary6", "output": str(tmp_path / "one")}
    train(load_recipe(tiny.recipe, fields), ["align"], console=Console(quiet=True))
    options = ["--model.projector", "vocabulary6", "--stages", "align", "--output", str(tmp_path / "two")]
    command = ["-m", "moe_llava", "train", str(tiny.recipe), *options]
    process = torchrun(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-3000:]
    assert output.count("words fitted to") == 1
    one, two = (load_file(tmp_path / name / "align" / "model.safetensors") for name in ("one", "two"))
    for key, tensor in one.items():
        assert torch.allclose(two[key], tensor, atol=1e-5), key


@pytest.fixture
def job(tiny: Tiny, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    fields = ["--stages.align.steps", "100000", "--distributed.layout", "fsdp", "--output", str(tmp_path / "run")]
    process = torchrun(
        "-m", "moe_llava", "train", str(tiny.recipe), *fields, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    yield process
    process.kill()
    process.wait()


def test_a_killed_process_ends_the_job_with_a_sentence(job: subprocess.Popen[str], tmp_path: Path) -> None:
    folder = tmp_path / "run" / "align" / "checkpoints"
    while not checkpoints(folder) and job.poll() is None:
        time.sleep(0.05)
    last = children(job.pid)[-1]
    os.kill(last, signal.SIGKILL)
    killed = time.monotonic()
    _, errors = job.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert job.returncode != 0
    assert "another process of the job has ended" in errors
    assert "--resume" in errors
    assert FileSystemReader(checkpoints(folder)[-1]).read_metadata().state_dict_metadata


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    "wanted, world, message",
    [
        ({"layout": "fsdp", "replicas": 3}, 8, "does not divide 8"),
        ({"layout": "fsdp_ep", "expert_parallel": 3}, 6, "choose one of 1, 2"),
    ],
)
def test_what_cannot_be_shared_out_is_said(wanted: dict[str, Any], world: int, message: str) -> None:
    config: MoeLlavaConfig = tiny_sparse().config
    with pytest.raises(ValueError, match=message):
        distributed_config(Distributed.model_validate(wanted), config, world)


def test_a_layout_is_chosen_for_the_model() -> None:
    wanted = Distributed(layout="fsdp_ep")
    config = distributed_config(wanted, tiny_sparse().config, 8)
    assert config is not None and (config.fsdp_size, config.ep_size) == (8, 4)
    assert distributed_config(wanted, tiny_sparse().config, 1) is None
    with pytest.raises(ValueError, match="need layout"):
        Distributed(layout="ddp", replicas=2)


def test_adapters_are_refused_where_weights_are_shared_out(tiny: Tiny) -> None:
    recipe = load_recipe(tiny.recipe, {"stages.align.train": "{ projector = { lr = 1e-3, lora_rank = 2 } }"})
    with pytest.raises(ValueError, match="adapters train with"):
        check_stage("align", recipe.stages["align"], Distributed(layout="fsdp"))
