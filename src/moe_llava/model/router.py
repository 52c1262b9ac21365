"""Token -> its experts and their weights."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers import initialization as init


def choose_experts(
    router_logits: Float[Tensor, "token expert"], top_k: int, normalize: bool
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """Softmax over all experts, the `top_k` largest, renormalised to sum to one if `normalize`.

    Renormalised weights make a freshly copied mixture equal to the dense network it came from, for every `top_k`.
    """
    weights, experts = router_logits.softmax(dim=-1).topk(top_k, dim=-1)
    if normalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, experts


class TopKRouter(nn.Module):
    """A linear map from the hidden state to one logit per expert, computed in at least fp32 under any autocast."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.normalize = config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(width): what `nn.Linear` does by default, and so what MoE-LLaVA's gate starts from."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        init.uniform_(self.weight, -bound, bound)

    def forward(
        self, hidden_states: Float[Tensor, "token width"]
    ) -> tuple[Float[Tensor, "token expert"], Float[Tensor, "token k"], Int[Tensor, "token k"]]:
        """Return router logits, and the weights and indices of the chosen experts, all of `token` rows."""
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        with torch.autocast(hidden_states.device.type, enabled=False):
            router_logits = F.linear(hidden_states.to(dtype), self.weight.to(dtype))
            weights, experts = choose_experts(router_logits, self.top_k, self.normalize)
        return router_logits, weights, experts
