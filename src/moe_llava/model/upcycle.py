"""Dense -> sparse with the same output at step 0: every expert starts as a copy of the feed-forward network.

Sparse Upcycling (2212.05055); stage III of MoE-LLaVA (2401.15947, section 3.2).
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedModel

from moe_llava.model.compose import compose, load_state
from moe_llava.model.config import LayerChoice, MoeLlavaConfig, moe_layers, sparse_text_config
from moe_llava.model.decoder import decoder_layers
from moe_llava.model.experts import FeedForwardLayout, layout_of, stack_dense
from moe_llava.model.moe_llava import MoeLlavaForConditionalGeneration
from moe_llava.model.router import TopKRouter


def upcycle(
    dense: PreTrainedModel | str | Path,
    *,
    num_experts: int = 4,
    top_k: int = 2,
    layers: LayerChoice | list[int] | tuple[int, ...] = "alternate",
    normalize_gates: bool = True,
    balance_coefficient: float = 0.01,
    z_loss_coefficient: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> MoeLlavaForConditionalGeneration:
    """Copy each chosen feed-forward network into `num_experts` experts under a fresh top-k router.

    With `normalize_gates` (the default) and no noise the result computes what `dense` computes, for every `top_k`.

    Args:
        dense: a dense MoE-LLaVA, a causal language model (the result is text-only), or the folder of a dense
            MoE-LLaVA, whose experts are then copied straight from the file as it is read.
        layers: `alternate` (0, 2, ...), `first_half`, `second_half`, `all`, or indices.
        noise: standard deviation of Gaussian noise on the experts, relative to that of each weight tensor; it breaks
            the equality at step 0 (see `noise_jump`).
        seed: of routers and noise.

    Raises:
        ValueError: impossible numbers, an unknown layout of the feed-forward network, or a model that is sparse.
    """
    config, state, dtype = _dense_parts(dense, dtype)
    sparse_config = MoeLlavaConfig(**config.to_dict())
    sparse_config.text_config = sparse_text_config(
        config.text_config,
        layers=layers,
        num_experts=num_experts,
        top_k=top_k,
        normalize_gates=normalize_gates,
        balance_coefficient=balance_coefficient,
        z_loss_coefficient=z_loss_coefficient,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = _copy_into_experts(state, sparse_config) | _fresh_routers(sparse_config)
        model = load_state(sparse_config, state, dtype=dtype)
        if noise:
            add_noise(model, noise)
    return model


def add_noise(model: nn.Module, noise: float) -> None:
    """Add Gaussian noise to every expert weight, of `noise` times the standard deviation of its tensor."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mlp.experts." in name:
                parameter.add_(torch.randn_like(parameter) * (noise * parameter.std()))


@torch.no_grad()
def noise_jump(
    dense: MoeLlavaForConditionalGeneration, sparse: MoeLlavaForConditionalGeneration, seed: int = 0
) -> float:
    """Largest change of a logit between a dense model and its sparse copy, over 64 random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(dense.config.text_config.vocab_size, (1, 64), generator=generator).to(dense.device)
    ids[ids == dense.config.image_token_id] = 0
    return (dense(input_ids=ids).logits.float() - sparse(input_ids=ids).logits.float()).abs().max().item()


def _dense_parts(
    dense: PreTrainedModel | str | Path, dtype: torch.dtype | None
) -> tuple[MoeLlavaConfig, dict[str, Tensor], torch.dtype]:
    if isinstance(dense, (str, Path)):
        config = MoeLlavaConfig.from_pretrained(dense)
        state: dict[str, Tensor] = {}
        for shard in sorted(Path(dense).glob("*.safetensors")):
            state |= load_file(shard)
        if not state:
            raise ValueError(f"{dense} holds no .safetensors file: give the folder of a complete dense checkpoint.")
        return config, state, dtype or next(iter(state.values())).dtype
    if not isinstance(dense, MoeLlavaForConditionalGeneration):
        dense = compose(dense, image_token_id=dense.config.get_text_config().vocab_size)
    # Tensors are cloned: the dense model stays its owner's.
    return dense.config, {name: tensor.clone() for name, tensor in dense.state_dict().items()}, dtype or dense.dtype


def _copy_into_experts(state: dict[str, Tensor], config: MoeLlavaConfig) -> dict[str, Tensor]:
    text_config = config.text_config
    layouts = feed_forward_layouts(config)
    sparse, dense_networks = {}, {index: {} for index in moe_layers(text_config)}  # type: ignore[var-annotated]
    for name, tensor in state.items():
        match = re.fullmatch(r"model\.language_model\.layers\.(\d+)\.mlp\.(.+)", name)
        if match and int(match[1]) in dense_networks:
            dense_networks[int(match[1])][match[2]] = tensor
        else:
            sparse[name] = tensor
    for index, network in dense_networks.items():
        for name, tensor in stack_dense(network, layouts[index], text_config.num_experts).items():
            sparse[f"model.language_model.layers.{index}.mlp.experts.{name}"] = tensor.contiguous()
    return sparse


def _fresh_routers(config: MoeLlavaConfig) -> dict[str, Tensor]:
    routers = {}
    for index in moe_layers(config.text_config):
        router = TopKRouter(config.text_config)
        router.reset_parameters()
        routers[f"model.language_model.layers.{index}.mlp.gate.weight"] = router.weight.detach()
    return routers


def feed_forward_layouts(config: MoeLlavaConfig) -> list[FeedForwardLayout]:
    """Layout of each decoder layer's dense feed-forward network, from the family's own modules, without weights."""
    text_config = config.text_config
    with torch.device("meta"):
        family: Any = MODEL_MAPPING[type(text_config)]
        decoder = family(type(text_config)(**text_config.to_dict()))
    return [layout_of(layer.mlp) for layer in decoder_layers(decoder)]
