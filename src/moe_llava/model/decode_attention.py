"""Attention of a single new token on a CPU, where torch's own kernel is made for many.

Registered with transformers as `sdpa_decode`: scaled dot products as `sdpa` computes them, those of one token by two
plain products in fp32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "sdpa_decode"


def decode_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`(batch, head, token, width)` in, `(batch, token, head, width)` out, as transformers' interface asks."""
    if query.shape[2] != 1 or query.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query.float(), key.float().transpose(2, 3)) * scale
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    output = torch.matmul(scores.softmax(dim=-1), value.float()).to(query.dtype)
    return output.transpose(1, 2).contiguous(), None


def use_in(decoder: Any) -> None:
    """Let a decoder attend so, if it would attend by `sdpa`."""
    if decoder.config._attn_implementation == "sdpa":
        decoder.set_attn_implementation(NAME)


ALL_ATTENTION_FUNCTIONS.register(NAME, decode_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
