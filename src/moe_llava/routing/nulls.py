"""What an audit takes away from a mixture. Each is a context manager on a model that runs under `measured`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.routing.intervene import (
    Rule,
    added_networks,
    edited,
    mean_network,
    random_router,
    redirect,
    rerouted,
    runner_up,
    sparse_layers,
    uniform_router,
)


def _every_router(rule_of_layer: Callable[[int], Rule]) -> Callable[[Any], AbstractContextManager[None]]:
    return lambda model: rerouted(model, {index: rule_of_layer(index) for index in sparse_layers(model)})


@contextmanager
def experts_are_their_mean(model: MoeLlavaForConditionalGeneration) -> Iterator[None]:
    """One network a layer, with the mean of its experts' weights, in the place of them all."""
    rules: dict[int, Rule] = {}
    with ExitStack() as stack:
        for index, mlp in sparse_layers(model).items():
            (target,) = stack.enter_context(added_networks(mlp.experts, [mean_network(mlp.experts)]))
            rules[index] = redirect(lambda experts: torch.ones_like(experts, dtype=torch.bool), target)
        stack.enter_context(rerouted(model, rules))
        yield


def deltas_cut(share: float) -> Callable[[Any], AbstractContextManager[None]]:
    """Of what distinguishes an expert from the mean, drop `share` of the numbers of each tensor, smallest first."""

    @contextmanager
    def cut(model: MoeLlavaForConditionalGeneration) -> Iterator[None]:
        with ExitStack() as stack:
            for mlp in sparse_layers(model).values():
                stack.enter_context(edited(mlp.experts, lambda tensor: keep_largest(tensor, 1 - share)))
            yield

    return cut


def keep_largest(stacked: Tensor, share: float) -> Tensor:
    """Experts `(expert, ...)` as their mean plus the `share` of each one's delta that is largest in magnitude."""
    base = stacked[0] + (stacked - stacked[0]).mean(dim=0)
    deltas = (stacked - base).flatten(1)
    kept = max(1, round(share * deltas.shape[1]))
    largest = deltas.abs().topk(kept, dim=1).indices
    sparse = torch.zeros_like(deltas).scatter_(1, largest, deltas.gather(1, largest))
    return base + sparse.reshape(stacked.shape)


NULLS: dict[str, tuple[str, str, Callable[[int], Callable[[Any], AbstractContextManager[None]]]]] = {
    "mean": (
        "experts replaced by their mean",
        "Do the experts differ in anything that matters?",
        lambda seed: experts_are_their_mean,
    ),
    "cut_90": (
        "90 % of what makes experts differ cut away",
        "Would a tenth of the differences do?",
        lambda seed: deltas_cut(0.90),
    ),
    "cut_99": (
        "99 % of what makes experts differ cut away",
        "Would a hundredth of the differences do?",
        lambda seed: deltas_cut(0.99),
    ),
    "random": (
        "experts drawn at random",
        "Does it matter which expert a token goes to?",
        lambda seed: _every_router(lambda index: random_router(1000 * seed + index)),
    ),
    "uniform": (
        "all experts in equal parts",
        "Does choosing do better than asking everyone?",
        lambda seed: _every_router(lambda index: uniform_router),
    ),
    "runner_up": (
        "first choice replaced by the best expert not chosen",
        "Is the router's first choice better than its next best?",
        lambda seed: _every_router(lambda index: runner_up),
    ),
}
