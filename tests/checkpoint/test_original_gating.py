"""The oracle is the original's gating: all recorded cases of its layer, forward and backward."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tests.original_gating import gate

CASES = [f"c{number:02}" for number in range(45)]


def feed_forward(x: Tensor, weights: dict[str, Tensor], prefix: str) -> Tensor:
    gate_proj, up_proj, down_proj = (weights[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return F.linear(F.silu(F.linear(x, gate_proj)) * F.linear(x, up_proj), down_proj)


@pytest.fixture(scope="module")
def recorded(fixtures: Path) -> tuple[dict[str, Tensor], dict]:
    folder = fixtures / "golden" / "moe_layer"
    return load_file(folder / "moe_layer.safetensors"), json.loads((folder / "meta.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_oracle_equals_the_recorded_layer(recorded: tuple[dict[str, Tensor], dict], case: str) -> None:
    tensors, meta = recorded
    tensors = {name.removeprefix(f"{case}/"): tensor for name, tensor in tensors.items() if name.startswith(case)}
    setting = meta.get("cases", meta)[case]
    weights = {n.removeprefix("param/"): t.requires_grad_() for n, t in tensors.items() if n.startswith("param/")}
    x = tensors["x"].requires_grad_()
    tokens = x.reshape(-1, x.shape[-1])
    logits = F.linear(tokens, weights["deepspeed_moe.gate.wg.weight"])
    gating = gate(logits, setting["k"], setting["capacity_factor"], setting["min_capacity"], tensors["rand"])
    experts = [
        feed_forward(tokens, weights, f"deepspeed_moe.experts.deepspeed_experts.{number}")
        for number in range(setting["num_experts"])
    ]
    y = torch.einsum("te,etw->tw", gating.weights, torch.stack(experts)).reshape(x.shape)
    if setting["use_residual"]:
        share = F.linear(x, weights["coefficient.weight"], weights["coefficient.bias"]).softmax(dim=-1)
        y = y * share[..., :1] + feed_forward(x, weights, "mlp") * share[..., 1:]
    assert gating.combine.shape[-1] == setting["capacity"]
    assert torch.equal(gating.first_choices.long(), tensors["exp_counts"])
    torch.testing.assert_close(gating.combine, tensors["combine_weights"], rtol=0, atol=1e-6)
    torch.testing.assert_close(gating.aux_loss, tensors["l_aux"].squeeze(), rtol=0, atol=1e-6)
    torch.testing.assert_close(y, tensors["y"], rtol=0, atol=2e-6)
    ((y * tensors["cotangent"]).sum() + 0.7 * gating.aux_loss).backward()
    for name, weight in weights.items():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        expected = tensors.get(f"grad/{name}", torch.zeros_like(weight))
        torch.testing.assert_close(gradient, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(x.grad, tensors["grad_x"], rtol=0, atol=2e-5)
