"""A model of ours -> the layout of transformers' own LLaVA, which loads without this package.

A decoder of Qwen3's family becomes Qwen3-MoE; one of Llama's or Mistral's with every layer sparse becomes Mixtral; a
dense decoder stays what it is. A text-only model becomes the causal language model alone.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from moe_llava.checkpoint.folder import load_model
from moe_llava.data.pixels import MoeLlavaImageProcessor
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.config import moe_layers
from moe_llava.model.head import LogitRule

LAYOUTS = ("hf-llava",)
TOLERANCE = 1e-5
_PROJECTOR = "model.multi_modal_projector."
_DECODER = "model.language_model."


@dataclass(frozen=True)
class Export:
    """What was written: the class that opens it, its decoder's `model_type`, and by how much its logits differ."""

    architecture: str
    text_model_type: str
    difference: float


def export(source: str | Path, out: str | Path) -> Export:
    """Write a checkpoint of ours to `out` as stock LLaVA; it is read back, and kept if its logits are the model's.

    Raises:
        ValueError: the stock layout cannot express this model (the reason is said), or `out` is in use.
        OSError: it cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: choose another folder, or remove it.")
    model, processor = load_model(source)
    dtype = model.dtype
    stock = stock_model(model.float().eval())
    staging = out / ".writing"
    staging.mkdir(parents=True, exist_ok=True)
    try:
        stock.generation_config = model.generation_config
        stock.to(dtype).save_pretrained(staging)  # type: ignore[arg-type]
        _name_as_published(staging, type(stock.config))
        stock_processor(model.config, processor).save_pretrained(staging)
        difference = compare(model, type(stock).from_pretrained(staging, dtype=torch.float32).eval())
        for path in sorted(staging.iterdir()):
            path.replace(out / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Export(type(stock).__name__, stock.config.get_text_config().model_type, difference)


def _name_as_published(folder: Path, config_class: type) -> None:
    """The tower's tensors as published LLaVA names them, `vision_tower.vision_model.`.

    transformers drops that level as it reads them and does not put it back; other engines want it.
    """
    if config_class is not LlavaConfig:
        return
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        save_file({_published(name): tensor for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    for index in folder.glob("*.safetensors.index.json"):
        table = json.loads(index.read_text())
        table["weight_map"] = {_published(name): file for name, file in table["weight_map"].items()}
        index.write_text(json.dumps(table, indent=2))


def _published(name: str) -> str:
    tower, level = "vision_tower.", "vision_model."
    before, found, after = name.partition(tower)
    return f"{before}{tower}{level}{after.removeprefix(level)}" if found and before in ("", "model.") else name


def stock_model(model: MoeLlavaForConditionalGeneration) -> PreTrainedModel:
    """The same model in transformers' own classes.

    Raises:
        ValueError: they cannot express it; the reason is said.
    """
    text_config = stock_text_config(model.config.text_config)
    state = model.state_dict()
    if model.config.vision_config is None:
        causal: PreTrainedModel = AutoModelForCausalLM.from_config(text_config)
        prefix = f"{causal.base_model_prefix}."
        causal.load_state_dict({_renamed(name, {_DECODER: prefix}): tensor for name, tensor in state.items()})
        return causal.eval()
    config = stock_config(model.config, text_config)
    names = {f"{_PROJECTOR}0.": f"{_PROJECTOR}linear_1.", f"{_PROJECTOR}2.": f"{_PROJECTOR}linear_2."}
    stock = LlavaForConditionalGeneration(config)
    stock.load_state_dict({_renamed(name, names): tensor for name, tensor in state.items()})
    return stock.eval()


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    for ours, theirs in prefixes.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


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
        raise _cannot(
            f"transformers has no mixture of experts of the {text_config.model_type} family; qwen3, and llama and "
            "mistral with every layer sparse, have one. Serve it with `moe-llava serve`"
        )
    return make(text_config)


def _check_head(text_config: PreTrainedConfig) -> None:
    rule = LogitRule(text_config)
    probe = torch.linspace(-50, 50, text_config.vocab_size)
    if rule.has_bias or not torch.equal(rule(probe[None]), probe[None]):
        raise _cannot(f"stock LLaVA's head is a plain linear map, and that of {text_config.model_type} is not")


def _qwen3_moe(text_config: PreTrainedConfig) -> PreTrainedConfig:
    if text_config.use_sliding_window:
        raise _cannot("Qwen3-MoE slides its attention window over all layers, this decoder over some")
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
        raise _cannot(
            f"in Mixtral every layer is sparse, here {len(moe_layers(text_config))} of {layers} are; upcycle with "
            '`layers = "all"`'
        )
    if not text_config.norm_topk_prob:
        raise _cannot("Mixtral's weights of the chosen experts sum to one, and this model's do not (normalize_gates)")
    if getattr(text_config, "attention_bias", False) or getattr(text_config, "mlp_bias", False):
        raise _cannot("Mixtral has no biases in attention and experts, and this decoder has")
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
        raise _cannot(f"stock LLaVA's projector is mlp2x_gelu, and this one is {config.projector_type}")
    if config.vision_prefix_tokens > 1:
        raise _cannot(f"stock LLaVA drops one leading token of the tower, and this model {config.vision_prefix_tokens}")
    if not isinstance(getattr(config.vision_config, "patch_size", None), int):
        raise _cannot(
            f"stock LLaVA reads a sequence of patches, and the tower ({config.vision_config.model_type}) is not known "
            "to give one: a convolutional tower gives a map"
        )
    if config.image_token_id >= text_config.vocab_size:
        raise _cannot(
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


def _cannot(reason: str) -> ValueError:
    return ValueError(f"This model has no stock layout: {reason}.")


def stock_processor(config: MoeLlavaConfig, processor: MoeLlavaProcessor) -> Any:
    """Tokenizer, template and preparation of pixels in stock classes; of a text-only model the tokenizer alone."""
    if processor.image_processor is None:
        processor.tokenizer.chat_template = processor.chat_template
        return processor.tokenizer
    pixels = processor.image_processor
    if isinstance(pixels, MoeLlavaImageProcessor):
        fields = {name: value for name, value in pixels.to_dict().items() if name != "image_processor_type"}
        pixels = LlavaImageProcessor(**fields)
    height, width = _pixel_size(pixels)
    patch = config.vision_config.patch_size
    tokens = config.image_seq_length + config.vision_prefix_tokens
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=processor.tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default" if config.vision_prefix_tokens else "full",
        num_additional_image_tokens=tokens - (height // patch) * (width // patch),
        chat_template=processor.chat_template,
    )


def _pixel_size(image_processor: Any) -> tuple[int, int]:
    size = image_processor.crop_size or image_processor.size
    return size["height"], size["width"]


@torch.no_grad()
def compare(model: MoeLlavaForConditionalGeneration, stock: PreTrainedModel) -> float:
    """Largest difference of a logit over random tokens and, with a tower, one random image; both models in fp32.

    Raises:
        ValueError: it is more than 1e-5 of the largest logit.
    """
    ids, inputs = _probe(model.config)
    ours, theirs = model(input_ids=ids, **inputs).logits, stock(input_ids=ids, **inputs).logits
    difference = (ours - theirs).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, ours.abs().max().item()):
        raise _cannot(f"its stock twin's logits differ by {difference:.2g}, so one of them reads the tower otherwise")
    return difference


def _probe(config: MoeLlavaConfig) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.text_config.vocab_size, (1, 48), generator=generator)
    ids[ids == config.image_token_id] = 0
    if config.vision_config is None:
        return ids, {}
    image = torch.full((1, config.image_seq_length), config.image_token_id)
    size = config.vision_config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.cat([image, ids], dim=1), {"pixel_values": torch.randn(1, 3, height, width, generator=generator)}
