"""The one configuration of a MoE-LLaVA: a text decoder, an optional vision tower, and how they meet."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

LayerChoice = Literal["alternate", "first_half", "second_half", "all"]


@strict
class MoeLlavaConfig(PreTrainedConfig):
    """A sparse (or still dense) vision-language model.

    What makes a decoder sparse lives on `text_config` under the field's usual flat names: `moe_layers` (indices of the
    sparse layers), `num_experts`, `num_experts_per_tok`, `moe_intermediate_size`, `norm_topk_prob`,
    `router_aux_loss_coef`, `router_z_loss_coef`, `output_router_logits`. No `moe_layers`: the model is dense.

    Args:
        vision_config: configuration of the vision tower, or `None` for a text-only model.
        text_config: configuration of any transformers decoder.
        image_token_id: id of the placeholder that each image token occupies in `input_ids`.
        image_seq_length: tokens that one image becomes.
        vision_hidden_size: width of the tower's patch features.
        vision_feature_layer: hidden state to read, as `hidden_states[i]`, or several side by side; `None` reads the
            tower's last output.
        vision_prefix_tokens: tokens without a place in the image (class, registers) dropped from the front.
        projector_type: `linear`, `mlp{n}x_gelu`, or `vocabulary{n}`: each patch a mixture of `n` words.
    """

    model_type = "moe_llava"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    vision_config: Any = None
    text_config: Any = None
    image_token_id: int = 32000
    image_seq_length: int = 0
    vision_hidden_size: int = 0
    vision_feature_layer: int | list[int] | None = None
    vision_prefix_tokens: int = 0
    projector_type: str = "mlp2x_gelu"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.vision_config, dict):
            self.vision_config = AutoConfig.for_model(**self.vision_config)
        super().__post_init__(**kwargs)
        # Older decoders keep the tie on the text configuration; the head that is tied lives on this model.
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))


def moe_layers(text_config: PreTrainedConfig) -> tuple[int, ...]:
    """Indices of the decoder layers whose feed-forward network is a mixture; empty for a dense model."""
    return tuple(getattr(text_config, "moe_layers", None) or ())


def choose_layers(choice: LayerChoice | list[int] | tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Turn a placement of the sparse layers into indices, as the original does (its `sparse` is our `alternate`).

    Raises:
        ValueError: an unknown name, or an index that the decoder does not have.
    """
    named = {
        "alternate": range(0, num_layers, 2),
        "first_half": range(num_layers // 2),
        "second_half": range(num_layers // 2, num_layers),
        "all": range(num_layers),
    }
    if isinstance(choice, str):
        if choice not in named:
            raise ValueError(f"layers = {choice!r} is unknown: use one of {', '.join(named)}, or a list of indices.")
        return tuple(named[choice])
    wrong = [index for index in choice if not 0 <= index < num_layers]
    if wrong or len(set(choice)) != len(choice) or not choice:
        raise ValueError(f"layers = {list(choice)} must name distinct layers from 0 to {num_layers - 1}.")
    return tuple(sorted(choice))


def sparse_text_config(
    text_config: PreTrainedConfig,
    *,
    layers: LayerChoice | list[int] | tuple[int, ...] = "alternate",
    num_experts: int = 4,
    top_k: int = 2,
    normalize_gates: bool = True,
    balance_coefficient: float = 0.01,
    z_loss_coefficient: float = 0.0,
) -> PreTrainedConfig:
    """Copy of a decoder's configuration in which the chosen layers are mixtures.

    Raises:
        ValueError: impossible numbers, or a decoder that is sparse already.
    """
    if num_experts < 1 or not 1 <= top_k <= num_experts:
        raise ValueError(
            f"top_k = {top_k} of num_experts = {num_experts} is impossible: use 1 <= top_k <= num_experts."
        )
    if moe_layers(text_config):
        raise ValueError("The model is sparse already: upcycling starts from a dense one.")
    sparse = type(text_config)(**text_config.to_dict())
    sparse.moe_layers = list(choose_layers(layers, text_config.num_hidden_layers))
    sparse.num_experts = num_experts
    sparse.num_experts_per_tok = top_k
    sparse.norm_topk_prob = normalize_gates
    sparse.router_aux_loss_coef = balance_coefficient
    sparse.router_z_loss_coef = z_loss_coefficient
    sparse.output_router_logits = False
    sparse.moe_intermediate_size = text_config.intermediate_size
    return sparse
