"""Recipe -> model and processor, from parts or from an earlier stage."""

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from moe_llava.checkpoint.folder import load_model
from moe_llava.data.conversation import read_conversations
from moe_llava.data.pixels import llava_pixels
from moe_llava.data.processor import MoeLlavaProcessor, prepare_tokenizer, train_tokenizer
from moe_llava.data.template import resolve_template
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.compose import compose
from moe_llava.model.upcycle import noise_jump, upcycle
from moe_llava.recipe import Model, Recipe


def build_model(recipe: Recipe) -> tuple[MoeLlavaForConditionalGeneration, MoeLlavaProcessor]:
    """Compose the parts that a recipe names: language model, tokenizer, tower, and a new projector.

    Raises:
        ValueError: a part cannot be found or does not fit its stated shape.
    """
    parts = recipe.model
    assert parts is not None
    tokenizer = _tokenizer(parts)
    prepare_tokenizer(tokenizer)
    language_model = _language_model(parts, tokenizer)
    tower, image_processor, size = None, None, (0, 0)
    if parts.vision:
        tower = _found(AutoModel, parts.vision.path)
        image_processor = _found(AutoImageProcessor, parts.vision.path)
        size = image_size(image_processor)
    model = compose(
        language_model,
        tower,
        image_token_id=tokenizer.get_vocab()["<image>"],
        image_size=size,
        feature_layer=parts.vision.feature_layer if parts.vision else None,
        prefix_tokens=parts.vision.prefix_tokens if parts.vision else None,
        projector_type=parts.projector,
    )
    processor = MoeLlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=resolve_template(parts.template, tokenizer),
        image_seq_length=model.config.image_seq_length,
        model_max_length=parts.max_length,
    )
    return model, processor


def build_stage(
    recipe: Recipe, name: str, console: Console | None = None
) -> tuple[MoeLlavaForConditionalGeneration, MoeLlavaProcessor]:
    """The model and processor that a stage begins with, in fp32, made sparse if the stage says so.

    Noise on the experts breaks the equality with the dense model: the measured jump is printed.
    """
    start = recipe.starting_point(name)
    torch.manual_seed(recipe.seed)
    if start is None:
        model, processor = build_model(recipe)
    else:
        model, processor = load_model(recipe.folder(start) if start in recipe.stages else start, dtype=torch.float32)
    stage = recipe.stages[name]
    parts = recipe.model
    if template := stage.template or (parts.template if parts else None):
        processor.chat_template = resolve_template(template, processor.tokenizer)
    ratio = stage.aspect_ratio or (parts.vision.aspect_ratio if parts and parts.vision else None)
    if ratio and processor.image_processor is not None:
        processor.image_processor = llava_pixels(processor.image_processor, pad=ratio == "pad")
    if stage.sparsify:
        dense, model = model, upcycle(model, seed=recipe.seed, **stage.sparsify.model_dump())
        if stage.sparsify.noise and console:
            jump = noise_jump(dense, model)
            console.print(f"{name}: noise of {stage.sparsify.noise:g} moves logits by up to {jump:.3g} at step 0")
    model.generation_config.eos_token_id = processor.stop_token_ids
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor


def image_size(image_processor: Any) -> tuple[int, int]:
    """Height and width of the pixels that an image processor gives: measured on a blank picture."""
    pixels = image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
    return pixels.shape[-2], pixels.shape[-1]


def _found(auto_class: Any, path: str, **kwargs: Any) -> Any:
    try:
        return auto_class.from_pretrained(path, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot load {path!r}: {str(error).splitlines()[0]}") from error


def _tokenizer(parts: Model) -> PreTrainedTokenizerBase:
    if parts.tokenizer.train_on:
        return train_tokenizer(_texts(parts.tokenizer.train_on), parts.tokenizer.vocab_size)
    path = parts.tokenizer.path or parts.language.path
    if path is None:
        raise ValueError("model.tokenizer: a language model from scratch needs `path` or `train_on`.")
    return _found(AutoTokenizer, path)


def _texts(paths: Iterable[str]) -> Iterable[str]:
    for path in paths:
        for conversation in read_conversations(path):
            for message in conversation.messages:
                yield message.content


def _language_model(parts: Model, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if parts.language.path is None:
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        vocabulary = -(-len(tokenizer) // 8) * 8
        config = AutoConfig.for_model(**{"vocab_size": vocabulary, **ids, **parts.language.config})
        return AutoModelForCausalLM.from_config(config)
    model = _found(AutoModelForCausalLM, parts.language.path, dtype=torch.float32)
    for key, stated in parts.language.config.items():
        if (actual := getattr(model.config, key, None)) != stated:
            raise ValueError(f"model.language.config.{key} = {stated!r}, but {parts.language.path} has {actual!r}.")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model
