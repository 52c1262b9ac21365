"""Folders as the original publishes them, made from random models of ours: the names, the configuration, the files."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor

from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.config import moe_layers
from tests.tiny import SIZE, tiny_tower

# What a configuration of the original calls its decoder's fields, where that differs from ours.
CONFIG_NAMES = {"stablelm": {"layer_norm_eps": "norm_eps", "partial_rotary_factor": "rope_pct"}}
PLAIN: tuple[str, ...] = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
PLAIN += ("num_key_value_heads", "max_position_embeddings", "hidden_act", "rms_norm_eps", "layer_norm_eps")
PLAIN += ("bos_token_id", "eos_token_id", "pad_token_id")


def write_tower(folder: Path) -> None:
    """A tiny CLIP tower with its image processor."""
    tiny_tower().save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=size).save_pretrained(folder)


def original_names(model: MoeLlavaForConditionalGeneration, tower: bool = True) -> dict[str, Tensor]:
    """The tensors of a model under the original's names: experts one by one, wrappers around tower and projector."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.bias":
            continue
        if name.startswith("model.vision_tower."):
            if tower:
                tensors[name.replace("vision_tower.", "image_tower.image_tower.vision_model.", 1)] = tensor
        elif name.startswith("model.multi_modal_projector."):
            tensors[name.replace("multi_modal_projector.", "mm_projector.image_spatial_proj.", 1)] = tensor
        elif ".mlp.experts." in name:
            tensors |= _experts(
                name.replace("language_model.", "", 1), tensor, plain="phi" in model.config.text_config.model_type
            )
        else:
            tensors[name.replace("language_model.", "", 1).replace("mlp.gate.", "mlp.deepspeed_moe.gate.wg.")] = tensor
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def _experts(name: str, stacked: Tensor, plain: bool) -> dict[str, Tensor]:
    prefix, _, kind = name.partition(".mlp.experts.")
    projection, bias = kind.removesuffix("_bias"), kind.endswith("_bias")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}[projection]
    if plain:
        parts = ({"up_proj": "fc1", "down_proj": "fc2"}[projection],)
    return {
        f"{prefix}.mlp.deepspeed_moe.experts.deepspeed_experts.{expert}.{part}.{'bias' if bias else 'weight'}": rows
        for expert, whole in enumerate(stacked)
        for part, rows in zip(parts, whole.chunk(len(parts)), strict=True)
    }


def original_config(model: MoeLlavaForConditionalGeneration, tower: str, **changes: Any) -> dict[str, Any]:
    """The config.json of the original for a model."""
    text = model.config.text_config
    names = CONFIG_NAMES.get(text.model_type, {})
    config: dict[str, Any] = {names.get(name, name): getattr(text, name) for name in PLAIN if hasattr(text, name)}
    rope = text.rope_parameters
    config["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        config[names.get("partial_rotary_factor", "partial_rotary_factor")] = rope["partial_rotary_factor"]
    if text.model_type == "stablelm":
        config["use_qkv_bias"] = text.use_qkv_bias
    config |= {
        "model_type": f"llava_{text.model_type}",
        "mm_image_tower": tower,
        "mm_video_tower": None,
        "image_projector_type": "mlp2x_gelu",
        "image_aspect_ratio": "pad",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "torch_dtype": "bfloat16",
    }
    if layers := moe_layers(text):
        config["model_type"] = f"moe_{config['model_type']}"
        config["moe"] = {
            "moe_enable": True,
            "moe_mode": "sparse",
            "moe_layers_idx": list(layers),
            "num_experts": [text.num_experts] * len(layers),
            "top_k_experts": text.num_experts_per_tok,
            "capacity_factor": 1.5,
            "eval_capacity_factor": 2.0,
            "min_capacity": 0,
            "ep_size": 1,
            "use_residual": False,
            "router_aux_loss_coef": 0.01,
            "train_modules": ["gate_proj", "up_proj", "down_proj", "wg"],
        }
    return config | changes


def write_original(
    folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], *, shards: int = 1, kind: str = "safetensors"
) -> Path:
    """A folder with config.json and weights, in as many files as asked."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = sorted(tensors)
    places: dict[str, str] = {}
    for number in range(shards):
        file = f"{stem}.{kind}" if shards == 1 else f"{stem}-{number + 1:05}-of-{shards:05}.{kind}"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
        places |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def before_4_52(name: str) -> str:
    """What transformers called a tensor of its LLaVA before version 4.52."""
    for new, old in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector", "multi_modal_projector"),
    ):
        name = name.replace(new, old)
    return name


def without_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A stage II checkpoint whose feed-forward networks are the first experts of a stage III one."""
    dense = {name: tensor for name, tensor in tensors.items() if "deepspeed_moe" not in name}
    first = re.compile(r"deepspeed_moe\.experts\.deepspeed_experts\.0\.")
    return dense | {first.sub("", name): tensor for name, tensor in tensors.items() if first.search(name)}
