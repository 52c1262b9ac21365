"""What trains, and whether the routing is well."""

import pytest
import torch

from moe_llava.recipe import Trainable
from moe_llava.train.health import RoutingHealth
from moe_llava.train.stages import assign_groups, prepare
from tests.tiny import tiny_dense, tiny_sparse


def rate(lr: float = 1e-3) -> Trainable:
    return Trainable(lr=lr)


def test_groups_hold_what_they_are_called() -> None:
    train = {name: rate() for name in ("projector", "experts", "router", "ffn")}
    groups = assign_groups(tiny_sparse(), train)
    inside = {group: {name.split("model.", 1)[1] for name, g in groups.items() if g == group} for group in train}
    assert all(name.startswith("multi_modal_projector") for name in inside["projector"])
    assert all(".mlp.experts." in name for name in inside["experts"])
    assert inside["router"] == {f"language_model.layers.{layer}.mlp.gate.weight" for layer in (0, 2)}
    assert all(name.startswith("language_model.layers.1.mlp.") for name in inside["ffn"])


def test_the_language_model_is_all_of_it_but_for_finer_groups_beside_it() -> None:
    model = tiny_sparse()
    whole = assign_groups(model, {"language_model": rate()})
    names = {name for name, _ in model.named_parameters() if "language_model" in name or "lm_head" in name}
    assert whole.keys() == names
    finer = assign_groups(model, {"language_model": rate(), "router": rate(1e-2)})
    assert {group for name, group in finer.items() if "mlp.gate.weight" in name} == {"router"}
    assert {group for name, group in finer.items() if "experts" in name} == {"language_model"}


def test_what_is_not_named_is_frozen() -> None:
    model = tiny_sparse()
    groups, adapters = prepare(model, {"router": rate(2e-3)})
    assert adapters is None
    assert [(group.name, group.lr, group.count) for group in groups] == [("router", 2e-3, 2 * 4 * 32)]
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"model.language_model.layers.{layer}.mlp.gate.weight" for layer in (0, 2)
    }


def test_a_dense_model_has_no_experts_to_train() -> None:
    with pytest.raises(ValueError, match="sparsify"):
        prepare(tiny_dense(), {"experts": rate()})


def test_groups_with_adapters_share_one_rank() -> None:
    pytest.importorskip("peft", reason="needs moe-llava[lora]")
    train = {"experts": Trainable(lr=1e-3, lora_rank=2), "ffn": Trainable(lr=1e-3, lora_rank=4)}
    with pytest.raises(ValueError, match="share lora_rank"):
        prepare(tiny_sparse(), train)


def test_health_of_even_routing() -> None:
    health = RoutingHealth(top_k=2)
    even = torch.stack([torch.eye(4).roll(shift, 1) * 1e-3 for shift in range(2)])
    for _ in range(3):
        health.update(even)
    summary = health.summary()
    assert summary["balance"] == pytest.approx(1.0, abs=1e-3)
    assert summary["router_entropy"] == pytest.approx(1.0, abs=1e-3)
    assert summary["dead_experts"] == 0
    assert health.warning() is None


def test_health_of_a_collapse_says_what_to_change() -> None:
    health = RoutingHealth(top_k=1)
    health.update(torch.tensor([9.0, 0, 0, 0]).repeat(2, 10, 1))
    summary = health.summary()
    assert summary["max_load"] == 1.0
    assert summary["dead_experts"] == 6
    assert summary["balance"] > 3.9
    assert "balance_coefficient" in (health.warning() or "")


def test_health_adds_up_over_passes_as_over_one() -> None:
    logits = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0))
    whole, pieces = RoutingHealth(top_k=2), RoutingHealth(top_k=2)
    whole.update(logits)
    pieces.update(logits[:, :7])
    pieces.update(logits[:, 7:])
    assert pieces.summary() == pytest.approx(whole.summary())
