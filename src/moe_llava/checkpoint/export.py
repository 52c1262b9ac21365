"""A model of ours -> the layout of transformers' own LLaVA, which loads without this package.

A decoder of Qwen3's family becomes Qwen3-MoE; one of Llama's or Mistral's with every layer sparse becomes Mixtral; a
dense decoder stays what it is. A text-only model becomes the causal language model alone.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedModel,
)

from moe_llava.checkpoint.folder import load_model
from moe_llava.checkpoint.stock import cannot, stock_config, stock_text_config
from moe_llava.data.pixels import MoeLlavaImageProcessor
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration

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
        raise cannot(f"its stock twin's logits differ by {difference:.2g}, so one of them reads the tower otherwise")
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
