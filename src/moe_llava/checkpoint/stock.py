"""Configurations of transformers' own classes that compute what a model of ours does, or the reason there is none."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from moe_llava.model import MoeLlavaConfig
from moe_llava.model.config import moe_layers
from moe_llava.model.head import LogitRule


def cannot(reason: str) -> ValueError:
    """What is raised where the stock layout cannot express a model."""
    return ValueError(f"This model has no stock layout: {reason}.")


def stock_text_config(text_config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the stock decoder that computes the same.

    Raises:
        ValueError: there is none.
    """
    _check_head(text_config)
    if not moe_layers(text_config):
        return type(text_config)(**text_config.to_dict())
    make = _SPARSE_FAMILIES.get(type(text_config))
    if make is None:
        raise cannot(
            f"transformers has no mixture of experts of the {text_config.model_type} family; qwen3, and llama and "
            "mistral with every layer sparse, have one. Serve it with `moe-llava serve`"
        )
    return make(text_config)


def _check_head(text_config: PreTrainedConfig) -> None:
    rule = LogitRule(text_config)
    probe = torch.linspace(-50, 50, text_config.vocab_size)
    if rule.has_bias or not torch.equal(rule(probe[None]), probe[None]):
        raise cannot(f"stock LLaVA's head is a plain linear map, and that of {text_config.model_type} is not")


def _qwen3_moe(text_config: PreTrainedConfig) -> PreTrainedConfig:
    if text_config.use_sliding_window:
        raise cannot("Qwen3-MoE slides its attention window over all layers, this decoder over some")
    sparse = set(moe_layers(text_config))
    dense = [index for index in range(text_config.num_hidden_layers) if index not in sparse]
    own: dict[str, Any] = {"head_dim": text_config.head_dim}  # read by the model, and not declared by its configuration
    return Qwen3MoeConfig(
        **_shared(text_config),
        **own,
        mlp_only_layers=dense,
        decoder_sparse_step=1,
        num_experts=text_config.num_experts,
        moe_intermediate_size=text_config.intermediate_size,
        norm_topk_prob=text_config.norm_topk_prob,
    )


def _mixtral(text_config: PreTrainedConfig) -> PreTrainedConfig:
    layers = text_config.num_hidden_layers
    if len(moe_layers(text_config)) != layers:
        raise cannot(
            f"in Mixtral every layer is sparse, here {len(moe_layers(text_config))} of {layers} are; upcycle with "
            '`layers = "all"`'
        )
    if not text_config.norm_topk_prob:
        raise cannot("Mixtral's weights of the chosen experts sum to one, and this model's do not (normalize_gates)")
    if getattr(text_config, "attention_bias", False) or getattr(text_config, "mlp_bias", False):
        raise cannot("Mixtral has no biases in attention and experts, and this decoder has")
    return MixtralConfig(
        **_shared(text_config),
        num_local_experts=text_config.num_experts,
        sliding_window=getattr(text_config, "sliding_window", None),
        head_dim=getattr(text_config, "head_dim", None),
    )


_SPARSE_FAMILIES: dict[type, Callable[[PreTrainedConfig], PreTrainedConfig]] = {
    Qwen3Config: _qwen3_moe,
    LlamaConfig: _mixtral,
    MistralConfig: _mixtral,
}
_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "attention_dropout",
    "attention_bias",
    "tie_word_embeddings",
    "num_experts_per_tok",
    "router_aux_loss_coef",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def _shared(text_config: PreTrainedConfig) -> dict[str, Any]:
    """Fields that both configurations have under the same name and meaning."""
    table = text_config.to_dict()
    return {name: table[name] for name in _SHARED if name in table}


def stock_config(config: MoeLlavaConfig, text_config: PreTrainedConfig) -> LlavaConfig:
    """Raises:
    ValueError: stock LLaVA reads its tower or projects its features in another way.
    """
    if config.projector_type != "mlp2x_gelu":
        raise cannot(f"stock LLaVA's projector is mlp2x_gelu, and this one is {config.projector_type}")
    if config.vision_prefix_tokens > 1:
        raise cannot(f"stock LLaVA drops one leading token of the tower, and this model {config.vision_prefix_tokens}")
    if not isinstance(getattr(config.vision_config, "patch_size", None), int):
        raise cannot(
            f"stock LLaVA reads a sequence of patches, and the tower ({config.vision_config.model_type}) is not known "
            "to give one: a convolutional tower gives a map"
        )
    if config.image_token_id >= text_config.vocab_size:
        raise cannot(
            f"its <image> token ({config.image_token_id}) lies outside the vocabulary ({text_config.vocab_size})"
        )
    return LlavaConfig(
        vision_config=config.vision_config,
        text_config=text_config,
        image_token_index=config.image_token_id,
        image_seq_length=config.image_seq_length,
        vision_feature_layer=-1 if config.vision_feature_layer is None else config.vision_feature_layer,
        vision_feature_select_strategy="default" if config.vision_prefix_tokens else "full",
        tie_word_embeddings=config.tie_word_embeddings,
    )
