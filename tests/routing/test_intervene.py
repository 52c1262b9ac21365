"""Changes of a live model: what they do, and that they leave it as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moe_llava.routing.intervene import (
    added_networks,
    edited,
    mean_network,
    measured,
    only,
    random_router,
    redirect,
    rerouted,
    runner_up,
    sparse_layers,
    uniform_router,
)
from tests.tiny import tiny_dense, tiny_inputs, tiny_sparse


@torch.no_grad()
def logits(model: Any) -> Tensor:
    inputs = tiny_inputs()
    real = inputs["attention_mask"].bool()
    return model(**{name: tensor for name, tensor in inputs.items() if name != "labels"}).logits[real]


@pytest.mark.parametrize("family", ["llama", "phi"])
@pytest.mark.parametrize("normalize, top_k", [(True, 2), (False, 1), (False, 2)])
def test_the_measuring_form_computes_the_same(family: str, normalize: bool, top_k: int) -> None:
    model = tiny_sparse(family, top_k=top_k, normalize_gates=normalize)
    usual = logits(model)
    with measured(model):
        assert torch.allclose(logits(model), usual, atol=1e-5)
    assert torch.equal(logits(model), usual)


def test_same_experts_are_exactly_the_same_under_any_router() -> None:
    model = tiny_sparse(noise=0.0, num_experts=3)
    with measured(model):
        before = logits(model)
        for rule in (random_router(0), uniform_router, runner_up, only([0, 2])):
            with rerouted(model, dict.fromkeys(sparse_layers(model), rule)):
                assert torch.equal(logits(model), before)


def test_an_expert_that_no_token_takes_changes_nothing_and_others_do() -> None:
    model = tiny_sparse()
    layer = sparse_layers(model)[0]
    with measured(model), rerouted(model, {0: only([0, 1])}):
        before = logits(model)
        with edited(layer.experts, lambda tensor: tensor * torch.tensor([1.0, 1.0, 9.0, 9.0]).view(-1, 1, 1)):
            assert torch.equal(logits(model), before)
        with edited(layer.experts, lambda tensor: tensor * torch.tensor([2.0, 1.0, 1.0, 1.0]).view(-1, 1, 1)):
            assert not torch.equal(logits(model), before)
        assert torch.equal(logits(model), before)


def test_an_added_network_stands_in_for_an_expert() -> None:
    model = tiny_sparse()
    experts = sparse_layers(model)[2].experts
    with measured(model):
        with added_networks(experts, [mean_network(experts), None]) as (mean, nothing):
            with rerouted(model, {2: redirect(lambda chosen: chosen == 1, mean)}):
                replaced = logits(model)
            with rerouted(model, {2: redirect(lambda chosen: chosen == 1, nothing)}):
                zeroed = logits(model)
        mean_of_all = mean_network(experts)

        def put_mean(tensor: Tensor) -> Tensor:
            name = next(name for name, one in mean_of_all.items() if one.shape == tensor.shape[1:])
            return torch.cat([tensor[:1], mean_of_all[name][None], tensor[2:]])

        with edited(experts, put_mean):
            assert torch.allclose(logits(model), replaced, atol=1e-6)
        with edited(experts, lambda tensor: tensor * torch.tensor([1.0, 0.0, 1.0, 1.0]).view(-1, 1, 1)):
            assert torch.allclose(logits(model), zeroed, atol=1e-6)


def test_redirecting_to_the_next_best_takes_experts_that_were_not_chosen() -> None:
    model = tiny_sparse()
    seen: list[tuple[Tensor, Tensor]] = []
    gate = sparse_layers(model)[0].gate
    rule = redirect(lambda chosen: torch.ones_like(chosen, dtype=torch.bool), None)

    def watch(*arguments: Any) -> tuple[Tensor, Tensor]:
        seen.append((arguments[4], rule(*arguments)[1]))
        return rule(*arguments)

    with measured(model), rerouted(model, {0: watch}):
        logits(model)
    before, after = seen[0]
    assert torch.equal(torch.cat([before, after], dim=1).sort(dim=1).values[0], torch.arange(gate.weight.shape[0]))
    assert not (before[:, :, None] == after[:, None, :]).any()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="dense"):
        sparse_layers(tiny_dense())
    model = tiny_sparse(num_experts=2, top_k=2)
    with measured(model), rerouted(model, {0: runner_up}), pytest.raises(ValueError, match="no next best"):
        logits(model)
    assert torch.isfinite(logits(model)).all()
