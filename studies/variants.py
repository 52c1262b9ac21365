"""What only the study does to a model before stage III. Each returns a function that tells facts afterwards."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.config import choose_layers
from moe_llava.routing.intervene import sparse_layers

Facts = Callable[[], dict[str, float]]


def limit_capacity(model: MoeLlavaForConditionalGeneration, factor: float) -> Facts:
    """In training an expert takes at most `factor * top_k * tokens / experts` tokens; the others are dropped.

    As DeepSpeed 0.9.5's top-2 gate, with which MoE-LLaVA was trained: places go by position, first choices before
    second ones; the weights of the experts that remain are renormalised; a token without any passes by the layer.
    Its noise on the second choice is left out, and padding takes places, as there.
    """
    taken = [0, 0]

    def drop(gate: Any, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor] | None:
        if not gate.training:
            return None
        logits, weights, experts = output
        kept = keep_places(experts, logits.shape[-1], math.ceil(factor * experts.numel() / logits.shape[-1]))
        taken[0] += int(kept.numel() - kept.sum())
        taken[1] += kept.numel()
        weights = weights * kept
        return logits, weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-9), experts

    for mixture in sparse_layers(model).values():
        mixture.gate.register_forward_hook(drop)
    return lambda: {"dropped": taken[0] / max(taken[1], 1)}


def keep_places(experts: Tensor, num_experts: int, capacity: int) -> Tensor:
    """`(token, k)` choices -> which of them find a place among the `capacity` of their expert."""
    order = experts.T.reshape(-1)  # all first choices, then all second ones
    place = nn.functional.one_hot(order, num_experts).cumsum(dim=0).gather(1, order[:, None])[:, 0]
    return (place <= capacity).reshape(experts.T.shape).T


def scale_router(model: MoeLlavaForConditionalGeneration, factor: float) -> Facts:
    """Routers start `factor` times as large: nearer to even probabilities."""
    with torch.no_grad():
        for mixture in sparse_layers(model).values():
            mixture.gate.weight.mul_(factor)
    return dict


def widen(model: MoeLlavaForConditionalGeneration, times: int) -> Facts:
    """Every other feed-forward network gets `times` as many neurons, with the same output: a larger dense model.

    Each neuron is copied; its output weights are shared out unevenly, at random, since equal copies would stay equal.
    """
    text_config = model.config.text_config
    for index in choose_layers("alternate", text_config.num_hidden_layers):
        network = model.model.language_model.layers[index].mlp
        shares = torch.rand(times, text_config.intermediate_size) + 0.5
        shares = (shares / shares.sum(dim=0)).reshape(-1)
        network.gate_proj = _linear(network.gate_proj.weight.repeat(times, 1))
        network.up_proj = _linear(network.up_proj.weight.repeat(times, 1))
        network.down_proj = _linear(network.down_proj.weight.repeat(1, times) * shares)
    return dict


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.detach().clone())
    return linear


VARIANTS: dict[str, Callable[..., Facts]] = {
    "limit_capacity": limit_capacity,
    "scale_router": scale_router,
    "widen": widen,
}
