"""Is the routing well? Running statistics of one logging interval."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from moe_llava.model.balance import first_choices, max_violation, router_entropy, router_margin

COLLAPSE_SHARE = 0.9


@dataclass
class RoutingHealth:
    """Sums over tokens, from which the figures of a log line are made.

    Attributes:
        chosen: `(layer, expert)` how often each expert was among the chosen.
        first: `(layer, expert)` how often it was the first choice.
        probability: `(layer, expert)` sum of router probabilities.
        entropy: `(layer,)` sum of the entropy of the router's distribution, in nats.
        margin: `(layer,)` sum of the distance between the largest and the second-largest probability.
    """

    top_k: int
    chosen: Tensor | None = None
    first: Tensor | None = None
    probability: Tensor | None = None
    entropy: Tensor | None = None
    margin: Tensor | None = None
    tokens: int = 0
    _names: tuple[str, ...] = field(default=("chosen", "first", "probability", "entropy", "margin"), repr=False)

    @torch.no_grad()
    def update(self, logits: Float[Tensor, "layer token expert"]) -> None:
        """Add the real tokens of one forward pass."""
        logits = logits.detach()
        probability = logits.softmax(dim=-1)
        chosen = torch.zeros_like(logits).scatter_(-1, logits.topk(self.top_k, dim=-1).indices, 1.0)
        sums = (
            chosen.sum(dim=1),
            first_choices(logits),
            probability.sum(dim=1),
            router_entropy(probability).sum(dim=1),
            router_margin(probability).sum(dim=1),
        )
        for name, value in zip(self._names, sums, strict=True):
            before = getattr(self, name)
            setattr(self, name, value if before is None else before + value)
        self.tokens += logits.shape[1]

    def reduce(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Add up the statistics of all processes; `summed` sums one tensor over them."""
        for name in self._names:
            if (value := getattr(self, name)) is not None:
                setattr(self, name, summed(value))
        self.tokens = int(self.first[0].sum().item()) if self.first is not None else 0

    def summary(self) -> dict[str, float]:
        """Figures of a log line; empty without tokens.

        `balance`: 1 is even, the number of experts is collapse. `max_load`: largest share of one expert in one layer,
        1/E is even. `max_violation`: by how much the largest load of a layer exceeds an even one, 0 is even.
        `dead_experts`: chosen by no token. `router_entropy`: as a share of its maximum. `router_margin`: distance of
        the first two probabilities.
        """
        if self.tokens == 0:
            return {}
        assert self.first is not None and self.chosen is not None
        assert self.probability is not None and self.entropy is not None and self.margin is not None
        num_experts = self.first.shape[-1]
        balance = num_experts * (self.first * self.probability).sum(dim=-1) / self.tokens**2
        entropy = self.entropy / self.tokens / torch.tensor(float(num_experts)).log().clamp_min(1e-12)
        return {
            "balance": balance.mean().item(),
            "max_load": (self.chosen / self.chosen.sum(dim=-1, keepdim=True)).max().item(),
            "max_violation": max_violation(self.chosen).mean().item(),
            "dead_experts": int((self.chosen == 0).sum().item()),
            "router_entropy": entropy.mean().item(),
            "router_margin": (self.margin / self.tokens).mean().item(),
        }

    def warning(self) -> str | None:
        """One sentence when a layer has collapsed: nearly all first choices on one expert. `None` when well."""
        if self.tokens == 0 or self.first is None or self.first.shape[-1] == 1:
            return None
        share = self.first.max(dim=-1).values / self.tokens
        collapsed = (share > COLLAPSE_SHARE).nonzero().flatten().tolist()
        if not collapsed:
            return None
        return (
            f"Routing collapses: in {len(collapsed)} of {len(share)} sparse layers one expert is the first choice "
            f"of more than {COLLAPSE_SHARE:.0%} of the tokens. Raise sparsify.balance_coefficient, "
            "or lower the rate of train.router."
        )
