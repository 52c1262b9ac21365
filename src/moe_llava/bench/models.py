"""The published shapes with random weights: what speed and memory depend on."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig

from moe_llava.checkpoint.quantized import encoded
from moe_llava.checkpoint.weights import empty_model, put
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.config import sparse_text_config
from moe_llava.model.encoding import Scheme, pack
from moe_llava.model.quantized import SCALES, lay_out, quantize_modules

SHAPES: dict[str, dict[str, Any]] = {
    "stablelm-1.6b": {
        "model_type": "stablelm",
        "vocab_size": 100352,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "use_qkv_bias": True,
        "partial_rotary_factor": 0.25,
    },
    "qwen-1.8b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "phi-2.7b": {
        "model_type": "phi",
        "vocab_size": 51200,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "partial_rotary_factor": 0.4,
    },
    "llava-1.5-7b": {
        "model_type": "llama",
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
SPARSE = ("stablelm-1.6b", "qwen-1.8b", "phi-2.7b")
TOWER = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
    projection_dim=768,
)


def shape_config(name: str, *, experts: int = 0, layers: int | None = None, vision: bool = True) -> MoeLlavaConfig:
    """Configuration of one shape: with `experts` every other layer is a mixture, without it is the dense backbone.

    Args:
        layers: of the decoder, if not all.

    Raises:
        ValueError: an unknown name.
    """
    if name not in SHAPES:
        raise ValueError(f"{name} is no shape of the bench: use one of {', '.join(SHAPES)}.")
    stated = dict(SHAPES[name])
    if layers is not None:
        stated["num_hidden_layers"] = layers
    text: PreTrainedConfig = AutoConfig.for_model(**stated)
    if experts:
        text = sparse_text_config(text, num_experts=experts, top_k=min(2, experts))
    config = MoeLlavaConfig(text_config=text.to_dict(), image_token_id=text.vocab_size)
    if vision:
        config.vision_config = TOWER
        config.vision_feature_layer, config.vision_prefix_tokens = -2, 1
        config.vision_hidden_size, config.image_seq_length = TOWER.hidden_size, 576
    return config


def random_model(
    config: MoeLlavaConfig, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> MoeLlavaForConditionalGeneration:
    """A model of random weights, filled from one pool of numbers: seconds instead of minutes."""
    model = empty_model(config)
    for name, tensor in random_tensors(model, dtype):
        put(model, name, tensor.to(device))
    model.requires_grad_(False).to(device)  # type: ignore[arg-type]
    return model


def random_tensors(model: MoeLlavaForConditionalGeneration, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """A tensor for each parameter: matrices normal with a deviation of 0.02, gains 1, offsets 0."""
    pool = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.ndim == 1:
            yield name, torch.full(parameter.shape, float(not name.endswith("bias")), dtype=dtype)
            continue
        tensor = torch.empty(parameter.numel(), dtype=dtype)
        # Each begins elsewhere in the pool, so that no two experts, and no two layers, are alike.
        start = number * 104_729 % len(pool)
        for at in range(0, len(tensor), len(pool)):
            piece = tensor[at : at + len(pool)]
            first = pool[start : start + len(piece)]
            piece[: len(first)] = first
            piece[len(first) :] = pool[: len(piece) - len(first)]
            start = (start + 7919) % len(pool)
        yield name, tensor.view(parameter.shape)


def random_quantized(
    config: MoeLlavaConfig, scheme: Scheme, dtype: torch.dtype, device: torch.device
) -> MoeLlavaForConditionalGeneration:
    """The quantised model of the same random weights."""
    plain, model = empty_model(config), empty_model(config)
    quantize_modules(model, scheme, dtype)
    names = dict(model.named_buffers())
    for name, tensor in encoded(random_tensors(plain, dtype), model):
        if name + SCALES in names and device.type == "cpu":
            tensor = pack(tensor)
        put(model, name, tensor.to(device))
    if device.type == "cpu":
        lay_out(model)
    return model.requires_grad_(False)
