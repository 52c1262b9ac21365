"""Experts removed, merged or added: a sparse model -> another one, ordinary in every way.

Every sparse layer keeps as many experts as the others, so that the result is described by the same configuration.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.compose import load_state
from moe_llava.routing.intervene import sparse_layers

Chosen = Mapping[int, Sequence[int]]


def prune(model: MoeLlavaForConditionalGeneration, keep: Chosen) -> MoeLlavaForConditionalGeneration:
    """Keep the experts `keep[layer]` in each sparse layer, in ascending order, and their rows of the router.

    `top_k` falls to the number of experts where it is larger. The router's softmax then runs over those that are left.

    Raises:
        ValueError: a layer keeps none, or another number than the others, or an expert that is not there.
    """
    number = _common_number(model, keep)
    kept = {layer: sorted(experts) for layer, experts in keep.items()}
    return _rebuilt(model, number, min(_top_k(model), number), lambda layer, tensor: tensor[kept[layer]])


def clone(model: MoeLlavaForConditionalGeneration, times: int) -> MoeLlavaForConditionalGeneration:
    """Every expert `times` times, and `top_k` as many times larger: the same output, at `times` the work.

    A token takes all copies of the experts that it took before, each at its share of the weight (2604.19835).

    Raises:
        ValueError: `times` is less than one.
    """
    if times < 1:
        raise ValueError(f"times = {times}: give at least 1.")
    number = num_experts(model)
    return _rebuilt(model, times * number, times * _top_k(model), lambda layer, tensor: torch.cat([tensor] * times))


def add_copies(model: MoeLlavaForConditionalGeneration, added: Chosen) -> MoeLlavaForConditionalGeneration:
    """Put copies of the experts `added[layer]` behind the others, with copies of their router rows; `top_k` stays.

    A token that took such an expert now takes it twice, in the place of its last choice: the output changes, more or
    less as the last choice mattered.

    Raises:
        ValueError: a layer gets none, or another number than the others, or of an expert that is not there.
    """
    more = _common_number(model, added)
    return _rebuilt(
        model,
        num_experts(model) + more,
        _top_k(model),
        lambda layer, tensor: torch.cat([tensor, tensor[list(added[layer])]]),
    )


def merge(
    model: MoeLlavaForConditionalGeneration,
    groups: Mapping[int, Sequence[Sequence[int]]],
    weights: Mapping[int, Float[Tensor, " expert"]],
) -> MoeLlavaForConditionalGeneration:
    """Each of `groups[layer]` becomes one expert: the mean of its weights and router rows, by `weights[layer]` (load).

    Experts that come from one feed-forward network have their inner units in the same order; others do not, and
    their mean means little.

    Raises:
        ValueError: the groups of a layer are not all of its experts, or fewer or more than in another layer.
    """
    for layer, parts in groups.items():
        if sorted(expert for part in parts for expert in part) != list(range(num_experts(model))):
            raise ValueError(f"Layer {layer}: every expert must be in one group.")
    number = _common_number(model, {layer: range(len(parts)) for layer, parts in groups.items()})

    def change(layer: int, tensor: Tensor) -> Tensor:
        means = []
        for part in groups[layer]:
            share = weights[layer][list(part)].to(tensor) + 1e-12
            share = (share / share.sum()).view(-1, *[1] * (tensor.ndim - 1))
            means.append((tensor[list(part)] * share).sum(dim=0) if len(part) > 1 else tensor[part[0]])
        return torch.stack(means)

    return _rebuilt(model, number, min(_top_k(model), number), change)


def most_similar_groups(similarity: Float[Tensor, "expert expert"], number: int) -> list[list[int]]:
    """Join the two most similar groups (by mean similarity of their members) until `number` are left.

    Raises:
        ValueError: more groups than experts, or none.
    """
    if not 1 <= number <= len(similarity):
        raise ValueError(f"{number} experts of {len(similarity)} is impossible: give 1 to {len(similarity)}.")
    groups = [[expert] for expert in range(len(similarity))]
    alike = similarity.to(torch.float64, copy=True).fill_diagonal_(-torch.inf)
    while len(groups) > number:
        first, second = sorted(divmod(int(alike.argmax()), len(groups)))
        sizes = len(groups[first]), len(groups[second])
        alike[first] = alike[:, first] = (sizes[0] * alike[first] + sizes[1] * alike[second]) / sum(sizes)
        alike[first, first] = -torch.inf
        left = [group for group in range(len(groups)) if group != second]
        alike = alike[left][:, left]
        groups[first] = sorted(groups[first] + groups.pop(second))
    return groups


def num_experts(model: MoeLlavaForConditionalGeneration) -> int:
    """Experts of each sparse layer.

    Raises:
        ValueError: the model is dense.
    """
    sparse_layers(model)
    return model.config.text_config.num_experts


def _top_k(model: MoeLlavaForConditionalGeneration) -> int:
    return model.config.text_config.num_experts_per_tok


def _common_number(model: MoeLlavaForConditionalGeneration, chosen: Chosen) -> int:
    layers, total = sparse_layers(model), num_experts(model)
    if set(chosen) != set(layers):
        raise ValueError(f"The sparse layers are {list(layers)}: choose experts in each of them.")
    wrong = {expert for experts in chosen.values() for expert in experts} - set(range(total))
    if wrong:
        raise ValueError(f"Experts {sorted(wrong)} do not exist: there are 0 to {total - 1}.")
    numbers = {len(experts) for experts in chosen.values()}
    if len(numbers) != 1 or not min(numbers):
        raise ValueError(f"Choose as many experts in every layer, at least one, not {sorted(numbers)}.")
    return numbers.pop()


def _rebuilt(
    model: MoeLlavaForConditionalGeneration, number: int, top_k: int, change: Callable[[int, Tensor], Tensor]
) -> MoeLlavaForConditionalGeneration:
    """A new model whose stacked experts and router rows are `change(layer, tensor)` of the old ones."""
    config = MoeLlavaConfig(**model.config.to_dict())
    config.text_config.num_experts, config.text_config.num_experts_per_tok = number, top_k
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for layer in sparse_layers(model):
        prefix = f"model.language_model.layers.{layer}.mlp."
        for name in [name for name in state if name.startswith(prefix)]:
            state[name] = change(layer, state[name]).contiguous()
    rebuilt = load_state(config, state, dtype=model.dtype)
    rebuilt.generation_config = model.generation_config
    return rebuilt.to(model.device)  # type: ignore[arg-type]
