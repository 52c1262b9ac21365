"""A step's gradient does not depend on how its samples are cut into micro-batches and processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import Tiny

pytestmark = pytest.mark.xdist_group("gradients")  # the reference is made once, by one worker

SCRIPT = Path(__file__).with_name("first_gradient.py")


def gradients(tiny: Tiny, out: Path, processes: int = 1, **overrides: str) -> dict[str, torch.Tensor]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    launcher = [] if processes == 1 else [*launcher, "--standalone"]
    fields = [f"stages.sparsify.{name}={value}" for name, value in overrides.items()]
    start = [f"stages.sparsify.starts_from={tiny.folder / 'dense'}", f"output={out.parent / out.stem}"]
    command = [sys.executable, *launcher, str(SCRIPT), str(tiny.recipe), str(out), *fields, *start]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{SCRIPT.parents[2]}/src:{SCRIPT.parents[2]}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(out)


@pytest.fixture(scope="module")
def dense(tiny: Tiny) -> Tiny:
    """A dense start whose decoder is random enough that routers disagree."""
    from moe_llava.checkpoint.folder import save_model
    from moe_llava.recipe import load_recipe
    from moe_llava.train.build import build_stage

    model, processor = build_stage(load_recipe(tiny.recipe), "align")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save_model(tiny.folder / "dense", model, processor)
    return tiny


@pytest.fixture(scope="module")
def whole(dense: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The reference: eight samples in one forward pass, a balance loss that is felt, experts that differ."""
    return gradients(dense, tmp_path_factory.mktemp("whole") / "g.safetensors", **FELT)


FELT = {"sparsify.balance_coefficient": "1.0", "sparsify.z_loss_coefficient": "0.1", "sparsify.noise": "0.3"}


@pytest.mark.parametrize(
    "processes, overrides",
    [
        (1, {"micro_batch_size": "2"}),
        (1, {"gradient_checkpointing": "true"}),
        (2, {}),
        (2, {"micro_batch_size": "2"}),
    ],
    ids=["accumulation 4", "gradient checkpointing", "two processes", "two processes, accumulation 2"],
)
def test_gradients_equal_one_pass(
    dense: Tiny, whole: dict[str, torch.Tensor], tmp_path: Path, processes: int, overrides: dict[str, str]
) -> None:
    cut = gradients(dense, tmp_path / "g.safetensors", processes, **FELT, **overrides)
    assert cut.keys() == whole.keys()
    assert any(name.endswith("mlp.gate.weight") for name in whole)
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0 or "projector" not in name
        assert torch.allclose(cut[name], gradient, atol=1e-5), name


def test_the_balance_loss_has_a_gradient(dense: Tiny, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    without = gradients(dense, tmp_path / "g.safetensors", **{**FELT, "sparsify.balance_coefficient": "0.0"})
    routers = [name for name in whole if name.endswith("mlp.gate.weight")]
    assert all((whole[name] - without[name]).abs().max() > 1e-4 for name in routers)
