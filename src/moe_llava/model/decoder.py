"""Any transformers decoder with chosen layers made sparse."""

import functools
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from moe_llava.model import sorted_experts
from moe_llava.model.config import moe_layers
from moe_llava.model.experts import Experts, build_experts
from moe_llava.model.router import TopKRouter


class SparseFeedForward(nn.Module):
    """Router, then experts, in the place of one dense feed-forward network."""

    def __init__(self, config: PreTrainedConfig, dense: nn.Module) -> None:
        super().__init__()
        self.gate = TopKRouter(config)
        self.experts = build_experts(config, dense)

    def forward(self, hidden_states: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, experts = self.gate(tokens)
        return self.experts(tokens, experts, weights).reshape(hidden_states.shape)


def decoder_layers(decoder: nn.Module) -> list[Any]:
    """The layers of a decoder whose feed-forward networks sit at `layer.mlp`.

    Raises:
        ValueError: the decoder is built otherwise.
    """
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(layer, "mlp") for layer in layers):
        raise ValueError(
            f"{type(decoder).__name__} is not supported: it has no feed-forward networks at layers[i].mlp."
        )
    return list(layers)


@functools.cache
def sparse_decoder_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Sub-class of a family's base model (`StableLmModel`, `PhiModel`, ...) whose `moe_layers` are mixtures.

    A sub-class and not a patched instance, because initialisation, output capture, experts dispatch and the parallel
    plans of transformers all hang on the class. `output_router_logits=True` gives `router_logits`: one
    `(batch * token, expert)` tensor per sparse layer.
    """

    class SparseDecoder(base):  # type: ignore[misc, valid-type]
        _can_record_outputs = {**(base._can_record_outputs or {}), "router_logits": OutputRecorder(TopKRouter, index=0)}
        _can_set_experts_implementation_cached_value = True
        _ep_plan = {
            **(base._ep_plan or {}),
            "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
            "layers.*.mlp.experts.gate_up_proj_bias": "grouped_gemm",
            "layers.*.mlp.experts.up_proj": "grouped_gemm",
            "layers.*.mlp.experts.up_proj_bias": "grouped_gemm",
            "layers.*.mlp.experts.down_proj": "grouped_gemm",
            "layers.*.mlp.experts.down_proj_bias": "grouped_gemm",
            "layers.*.mlp.experts": "ep_dispatch_experts",
        }

        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__(config)
            layers = decoder_layers(self)
            for index in moe_layers(config):
                layers[index].mlp = SparseFeedForward(config, layers[index].mlp)
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, (TopKRouter, Experts)):
                module.reset_parameters()
            else:
                super()._init_weights(module)

        def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
            return super().get_correct_experts_implementation(requested_experts or sorted_experts.NAME)

    SparseDecoder.__name__ = SparseDecoder.__qualname__ = f"Sparse{base.__name__}"
    return SparseDecoder


def build_decoder(text_config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
    """The decoder that a text configuration describes, sparse in its `moe_layers`."""
    return sparse_decoder_class(MODEL_MAPPING[type(text_config)])._from_config(text_config, **kwargs)
