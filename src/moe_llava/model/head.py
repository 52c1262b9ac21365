"""The family's own way from hidden states to logits."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class _PassThrough(nn.Module):
    """Stands where a causal model keeps its decoder and hands back what it is given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)


class LogitRule:
    """What a family does to logits beyond the linear head: scale (Granite, Cohere), soft-cap (Gemma 2), or nothing.

    The rule is the family's own code: its causal model, built without weights, in which decoder and head are replaced
    by identities, so that logits go in where hidden states did. A family's scaling before the linear head commutes
    with it.
    """

    def __init__(self, text_config: PreTrainedConfig) -> None:
        family = causal_class(text_config)
        with torch.device("meta"):
            # A copy through its dictionary: the decoder's choice of kernels is not the shell's.
            shell: PreTrainedModel = family(type(text_config)(**text_config.to_dict()))
        head = shell.get_output_embeddings()
        self.has_bias = head.bias is not None
        setattr(shell, shell.base_model_prefix, _PassThrough())
        shell.set_output_embeddings(nn.Identity())
        self._shell = shell

    def __call__(self, logits: Float[Tensor, "... vocabulary"]) -> Float[Tensor, "... vocabulary"]:
        sequence = logits.reshape(1, -1, logits.shape[-1])
        return self._shell(inputs_embeds=sequence, use_cache=False).logits.reshape(logits.shape)


def causal_class(text_config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The causal language model of a decoder's family.

    Raises:
        ValueError: the family has none.
    """
    if type(text_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{type(text_config).__name__} is not supported: transformers has no causal model for it.")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(text_config)]  # type: ignore[return-value]
