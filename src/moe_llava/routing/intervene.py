"""Change the routers and experts of a live model for a while: context managers that leave it as they found it.

What a change does is only as sure as the arithmetic is the same without it. The usual kernels are not: a token's output
changes in its last bits with the number of tokens that share its expert. `measured` puts a form in their place that is
equal in exact arithmetic and whose bits depend on a token's own experts and weights alone:

    output = mass * y_0 + sum_e c_e (y_e - y_0),      y_e = network e on all tokens, c_e = its weight for the token

So experts that are the same give exactly `mass * y_0`, whatever the router says, and an expert that no token takes can
be changed without moving a bit. Every network runs on every token: `num_experts / top_k` times the usual work.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.decoder import SparseFeedForward
from moe_llava.model.experts import Experts
from moe_llava.model.router import TopKRouter, choose_experts

KERNEL = "difference"
Weights = dict[str, Tensor]
# (router, hidden_states, logits, weights, experts) -> weights, experts
Rule = Callable[[TopKRouter, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def sparse_layers(model: MoeLlavaForConditionalGeneration) -> dict[int, SparseFeedForward]:
    """Index of each sparse decoder layer -> its mixture.

    Raises:
        ValueError: the model is dense.
    """
    layers = enumerate(model.model.language_model.layers)
    found = {index: layer.mlp for index, layer in layers if isinstance(layer.mlp, SparseFeedForward)}
    if not found:
        raise ValueError("The model is dense: it has no experts to look at. Give a sparse one.")
    return found


def difference_forward(
    self: Experts,
    hidden_states: Float[Tensor, "token width"],
    top_k_index: Int[Tensor, "token k"],
    top_k_weights: Float[Tensor, "token k"],
) -> Float[Tensor, "token width"]:
    """See the module. Indices from `num_experts` on are the networks that `added_networks` put beside the experts."""
    own = [network_of(self, expert) for expert in range(self.num_experts)]
    first = run_network(self, own[0], hidden_states).to(top_k_weights.dtype)
    # Normalised weights sum to one, which their floating-point sum misses by a bit.
    config: Any = self.config
    mass = 1.0 if config.norm_topk_prob else top_k_weights.sum(dim=-1, keepdim=True)
    output = mass * first
    for number, network in enumerate([*own, *getattr(self, "added", ())]):
        coefficient = (top_k_weights * (top_k_index == number)).sum(dim=-1, keepdim=True)
        if number and coefficient.any():
            result = run_network(self, network, hidden_states).to(first.dtype)
            output = output + coefficient * (result - first)
    return output.to(hidden_states.dtype)


ALL_EXPERTS_FUNCTIONS.register(KERNEL, difference_forward)


def network_of(experts: Experts, expert: int) -> Weights:
    """The tensors of one expert, as views."""
    return {name: tensor[expert] for name, tensor in experts.named_parameters(recurse=False)}


def run_network(
    experts: Experts, network: Weights | None, hidden_states: Float[Tensor, "token width"]
) -> Float[Tensor, "token width"]:
    """One feed-forward network on all tokens; `None` is the network that gives 0."""
    if network is None:
        return torch.zeros_like(hidden_states)
    name = experts.input_name
    inner = F.linear(hidden_states, network[name], network.get(f"{name}_bias"))
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    return F.linear(inner, network["down_proj"], network.get("down_proj_bias"))


def mean_network(experts: Experts) -> Weights:
    """Each weight's mean over the experts, exactly an expert's own where all are the same."""
    tensors = {name: tensor.detach() for name, tensor in experts.named_parameters(recurse=False)}
    return {name: tensor[0] + (tensor - tensor[0]).mean(dim=0) for name, tensor in tensors.items()}


@contextmanager
def measured(model: MoeLlavaForConditionalGeneration) -> Iterator[None]:
    """Run the mixtures by `difference_forward`."""
    decoder: Any = model.model.language_model
    before = decoder.config._experts_implementation
    decoder.set_experts_implementation(KERNEL)
    try:
        yield
    finally:
        decoder.set_experts_implementation(before)


@contextmanager
def rerouted(model: MoeLlavaForConditionalGeneration, rules: Mapping[int, Rule]) -> Iterator[None]:
    """Let `rules` (layer -> rule) have the last word on weights and experts; router logits stay."""
    layers = sparse_layers(model)
    with ExitStack() as hooks:
        for index, rule in rules.items():
            handle = layers[index].gate.register_forward_hook(_hook(rule))
            hooks.callback(handle.remove)
        yield


def _hook(rule: Rule) -> Callable[[nn.Module, tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]], Any]:
    def change(router: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> Any:
        assert isinstance(router, TopKRouter)
        return output[0], *rule(router, inputs[0], *output)

    return change


@contextmanager
def added_networks(experts: Experts, networks: Sequence[Weights | None]) -> Iterator[list[int]]:
    """Put networks beside the experts, under `measured` only, and give the indices that stand for them."""
    experts.added = list(networks)  # type: ignore[assignment]
    try:
        yield list(range(experts.num_experts, experts.num_experts + len(networks)))
    finally:
        del experts.added


@contextmanager
def edited(experts: Experts, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace each stacked tensor `(expert, ...)` by `change` of it."""
    kept = {name: tensor.detach().clone() for name, tensor in experts.named_parameters(recurse=False)}
    try:
        with torch.no_grad():
            for name, tensor in experts.named_parameters(recurse=False):
                tensor.copy_(change(kept[name]))
        yield
    finally:
        with torch.no_grad():
            for name, tensor in experts.named_parameters(recurse=False):
                tensor.copy_(kept[name])


def random_router(seed: int) -> Rule:
    """Distinct experts at random for each token, under the weights that the router gave to its own choices."""
    generator = torch.Generator().manual_seed(seed)

    def rule(_: TopKRouter, __: Tensor, logits: Tensor, weights: Tensor, ___: Tensor) -> tuple[Tensor, Tensor]:
        drawn = torch.rand(logits.shape, generator=generator).topk(weights.shape[-1], dim=-1).indices
        return weights, drawn.to(logits.device)

    return rule


def uniform_router(_: TopKRouter, __: Tensor, logits: Tensor, weights: Tensor, ___: Tensor) -> tuple[Tensor, Tensor]:
    """All experts for each token, in equal parts of what its own experts weighed together."""
    number = logits.shape[-1]
    shares = (weights.sum(dim=-1, keepdim=True) / number).expand(-1, number)
    return shares, torch.arange(number, device=logits.device).expand(len(logits), number)


def runner_up(_: TopKRouter, __: Tensor, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
    """The first choice gives its weight to the best expert that was not chosen (LibMoE's test).

    Raises:
        ValueError: every expert is chosen.
    """
    swapped = experts.clone()
    swapped[:, 0] = unchosen(logits, experts)[:, 0]
    return weights, swapped


def unchosen(
    logits: Float[Tensor, "token expert"], experts: Int[Tensor, "token k"], never: Sequence[int] = ()
) -> Int[Tensor, "token rest"]:
    """The experts that were not chosen, best first; those in `never`, which are not to be taken, come last.

    Raises:
        ValueError: every expert is chosen, or too few are left without `never`.
    """
    number, top_k = logits.shape[-1], experts.shape[-1]
    if number == top_k:
        raise ValueError(f"All {top_k} experts are chosen for every token: there is no next best.")
    if number - len(set(never)) < top_k:
        raise ValueError(f"Without {len(set(never))} of {number} experts there are fewer than the {top_k} of a token.")
    scores = logits.scatter(1, experts, -torch.inf)
    scores[:, list(never)] = -torch.inf
    return scores.topk(number - top_k, dim=-1).indices


def redirect(
    treated: Callable[[Int[Tensor, "token k"]], Bool[Tensor, "token k"]],
    target: int | None,
    never: Sequence[int] = (),
) -> Rule:
    """Send the treated assignments to `target`, or, if that is `None`, to the token's best experts not chosen."""

    def rule(_: TopKRouter, __: Tensor, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        mask = treated(experts)
        if target is not None:
            return weights, experts.masked_fill(mask, target)
        others = unchosen(logits, experts, never)
        # The second treated choice of a token takes the second of the others, as far as there are any.
        place = (mask.cumsum(dim=-1) - 1).clamp(0, others.shape[-1] - 1)
        return weights, torch.where(mask, others.gather(1, place), experts)

    return rule


def only(keep: Sequence[int]) -> Rule:
    """The router as if there were no experts but `keep`: the softmax runs over their logits alone.

    Their rows are multiplied apart, since the last bits of a matrix product depend on how many rows it has.
    """
    kept = sorted(keep)

    def rule(
        router: TopKRouter, hidden_states: Tensor, logits: Tensor, weights: Tensor, experts: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = router.weight[kept].to(logits.dtype)
        remaining = F.linear(hidden_states.to(logits.dtype), rows)
        weights, chosen = choose_experts(remaining, min(router.top_k, len(kept)), router.normalize)
        return weights, torch.tensor(kept, device=chosen.device)[chosen]

    return rule
