"""What a MoE-LLaVA returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import MultimodalMoeCausalLMOutputWithPast


@dataclass
class MoeLlavaOutput(MultimodalMoeCausalLMOutputWithPast):
    """`loss = language_loss + router_aux_loss_coef * aux_loss (+ z-loss)`; `aux_loss` is summed over sparse layers."""

    language_loss: Tensor | None = None
