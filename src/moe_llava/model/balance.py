"""Load-balancing and z-loss, and what tells whether routing is well: pure functions of what routers give."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def stack_real_tokens(
    router_logits: Sequence[Float[Tensor, "all_tokens expert"]], attention_mask: Tensor | None
) -> Float[Tensor, "layer token expert"]:
    """Router logits of all sparse layers, without the padding: what pads neither routes nor counts.

    `attention_mask (batch, token)` is 1 at real tokens; `None` keeps all.
    """
    stacked = torch.stack(tuple(router_logits))
    if attention_mask is None:
        return stacked
    real: Bool[Tensor, " all_tokens"] = attention_mask.reshape(-1).bool()
    return stacked[:, real]


def first_choices(logits: Float[Tensor, "layer token expert"]) -> Float[Tensor, "layer expert"]:
    """How many tokens have each expert as their first choice. It carries no gradient."""
    chosen = torch.zeros_like(logits, requires_grad=False)
    chosen.scatter_(-1, logits.detach().argmax(dim=-1, keepdim=True), 1.0)
    return chosen.sum(dim=1)


def load_balancing_loss(
    logits: Float[Tensor, "layer token expert"], counts: Float[Tensor, "layer expert"] | None = None
) -> Float[Tensor, " layer"]:
    """`E * sum_i(share of first choices_i * mean probability_i)`: 1 is perfect balance, E is collapse.

    The auxiliary loss of Switch Transformers (2101.03961, eq. 4) on first choices, as DeepSpeed 0.9.5's top-2 gating
    computes it. It is not a sum over tokens, so a batch that is cut in pieces (gradient accumulation, data
    parallelism) needs the first choices of the whole: give them as `counts`, and the losses of the pieces add up to
    the loss of the whole, with the same gradient.
    """
    if counts is None:
        counts = first_choices(logits)
    total = counts.sum(dim=-1, keepdim=True).clamp(min=1)
    mean_probability = logits.softmax(dim=-1).sum(dim=1) / total
    return logits.shape[-1] * (counts / total * mean_probability).sum(dim=-1)


def router_z_loss(
    logits: Float[Tensor, "layer token expert"], num_tokens: Float[Tensor, ""] | None = None
) -> Float[Tensor, " layer"]:
    """Mean of `logsumexp(logits)^2` (ST-MoE, 2202.08906, eq. 5); `num_tokens` is that of the whole batch."""
    total = num_tokens if num_tokens is not None else torch.tensor(float(max(logits.shape[1], 1)))
    return logits.logsumexp(dim=-1).square().sum(dim=1) / total


def router_entropy(probability: Float[Tensor, "*tokens expert"]) -> Float[Tensor, "*tokens"]:
    """Entropy of each token's distribution over experts, in nats: 0 is decided, log E undecided."""
    return torch.special.entr(probability).sum(dim=-1)


def router_margin(probability: Float[Tensor, "*tokens expert"]) -> Float[Tensor, "*tokens"]:
    """How far the first choice's probability lies above the second's; 1 where there is one expert."""
    if probability.shape[-1] == 1:
        return probability[..., 0]
    first, second = probability.topk(2, dim=-1).values.unbind(dim=-1)
    return first - second


def max_violation(counts: Float[Tensor, "*layers expert"]) -> Float[Tensor, "*layers"]:
    """MaxVio: how far the largest load exceeds an even one, `max_i c_i / mean c - 1` (2408.15664).

    0 is even; E / k - 1 is reached when k experts take every token.
    """
    return counts.max(dim=-1).values / counts.mean(dim=-1).clamp_min(1e-12) - 1
