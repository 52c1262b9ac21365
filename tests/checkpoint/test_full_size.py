"""At full size every tensor of the published models has its place: recorded names and shapes, scaled."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlavaConfig, LlavaForConditionalGeneration

from moe_llava.checkpoint.original.families import COMMON_NAMES, IGNORED, LLAVA_HF_NAMES
from moe_llava.checkpoint.original.layout import read_layout
from moe_llava.checkpoint.original.placing import Placer, check_shapes
from moe_llava.checkpoint.original.towers import KNOWN
from moe_llava.model import MoeLlavaConfig
from tests.checkpoint.published import before_4_52, without_experts

Shapes = dict[str, tuple[int, ...]]

# Configurations of the base models as their authors state them.
STABLELM = {"vocab_size": 100352, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24}
STABLELM |= {"num_attention_heads": 32, "num_key_value_heads": 32, "norm_eps": 1e-5, "rope_pct": 0.25}
STABLELM |= {"rope_theta": 10000, "use_qkv_bias": True, "max_position_embeddings": 4096, "hidden_act": "silu"}
QWEN = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 24}
QWEN |= {"num_attention_heads": 16, "kv_channels": 128, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000}
QWEN |= {"seq_length": 8192, "no_bias": True, "use_dynamic_ntk": True, "use_logn_attn": True, "rotary_pct": 1.0}
PHI = {"vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32}
PHI |= {"num_attention_heads": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4, "hidden_act": "gelu_new"}
PHI |= {"layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "rope_theta": 10000.0, "qk_layernorm": False}
OPENCHAT = {"vocab_size": 32002, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
OPENCHAT |= {"num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
OPENCHAT |= {"max_position_embeddings": 8192, "sliding_window": 4096, "hidden_act": "silu"}
VICUNA = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
VICUNA |= {"num_attention_heads": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-5, "hidden_act": "silu"}

CLIP, SIGLIP = "openai/clip-vit-large-patch14-336", "google/siglip-so400m-patch14-384"
# Published model: family, configuration, tower, parameters of the dense decoder; Phi-2's head lost its bias.
MODELS = {
    "StableLM-1.6B": ("stablelm", STABLELM, CLIP, 1_644_515_328),
    "Qwen-1.8B": ("qwen", QWEN, CLIP, 1_836_828_672),
    "Phi2-2.7B": ("phi", PHI, CLIP, 2_779_683_840 - 51_200),
    "StableLM-1.6B-384": ("stablelm", STABLELM, SIGLIP, 1_644_515_328),
    "Phi2-2.7B-384": ("phi", PHI, SIGLIP, 2_779_683_840 - 51_200),
    "OpenChat-7B": ("mistral", OPENCHAT, CLIP, 7_241_748_480),
    "LLaVA-1.5-7B": ("llama", VICUNA, CLIP, 6_738_415_616),
}


def recorded_shapes(file: Path) -> Shapes:
    with safe_open(file, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def repeated(shapes: Shapes, layers: int, period: int) -> Shapes:
    """The recorded layers 0 to `period - 1`, repeated to `layers` layers; and all that is in no layer."""
    layer = re.compile(r"(.*\.(?:layers|h)\.)(\d+)(\..*)")
    out = {name: shape for name, shape in shapes.items() if not layer.fullmatch(name)}
    for name, shape in shapes.items():
        if (match := layer.fullmatch(name)) and int(match[2]) < period:
            out |= {f"{match[1]}{number}{match[3]}": shape for number in range(int(match[2]), layers, period)}
    return out


def decoder_shapes(recorded: Shapes, config: dict[str, Any], vision_width: int) -> Shapes:
    """The recorded decoder (width 64, inner 96, 256 tokens, keys of 32 or 64) and projector at the published size."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    inner = config["intermediate_size"] // (2 if "kv_channels" in config else 1)
    keys = hidden // heads * config.get("num_key_value_heads", heads)
    sizes = {256: config["vocab_size"], 64: hidden, 96: inner, 192: 3 * hidden, 4: 4}
    own = {name: shape for name, shape in recorded.items() if "image_tower" not in name}
    return {
        name: tuple((sizes | {32: vision_width if "mm_projector" in name else keys})[size] for size in shape)
        for name, shape in repeated(own, config["num_hidden_layers"], period=2).items()
    }


def tower_shapes(recorded: Shapes, tower: dict[str, Any]) -> Shapes:
    """The recorded tower (width 32, inner 64) at the published size, under the original's names."""
    width, patches = tower["hidden_size"], (tower["image_size"] // tower["patch_size"]) ** 2
    sizes = {32: width, 64: tower["intermediate_size"], 96: 3 * width, 17: patches + 1, 9: patches, 14: 14, 3: 3, 1: 1}
    return {
        f"model.image_tower.image_tower.{name.partition('image_tower.image_tower.')[2] or name}": tuple(
            sizes[size] for size in shape
        )
        for name, shape in repeated(recorded, tower["num_hidden_layers"], period=1).items()
    }


@pytest.mark.parametrize(
    ("model", "stage"), [(model, "III") for model in MODELS] + [(m, "II") for m in MODELS if not m.endswith("-384")]
)
def test_every_tensor_has_its_place(model: str, stage: str, fixtures: Path, tmp_path: Path) -> None:
    family, decoder, tower, parameters = MODELS[model]
    golden = fixtures / "golden"
    recorded = recorded_shapes(golden / family / "a/checkpoint/model.safetensors")
    language = decoder_shapes(recorded, decoder, KNOWN[tower]["hidden_size"])
    config = decoder | {"model_type": f"llava_{family}", "mm_image_tower": tower, "mm_vision_select_layer": -2}
    config |= {"image_projector_type": "mlp2x_gelu", "image_aspect_ratio": "pad"}
    if stage == "III":
        layers = list(range(0, decoder["num_hidden_layers"], 2))
        moe = {"moe_enable": True, "moe_layers_idx": layers, "num_experts": [4] * len(layers), "top_k_experts": 2}
        config |= {"model_type": f"moe_llava_{family}", "moe": moe}
    else:
        language = without_experts(language)
        counted = sum(torch.Size(shape).numel() for name, shape in language.items() if "mm_projector" not in name)
        assert counted == parameters
    seen = {name: shape for name, shape in recorded.items() if "image_tower" in name}
    if tower == SIGLIP:
        seen = recorded_shapes(golden / "vision/tiny-siglip/model.safetensors")
    shapes = language | tower_shapes(seen, KNOWN[tower])

    if model == "LLaVA-1.5-7B" and stage == "II":
        for name in ("mm_image_tower", "image_projector_type"):
            config[name.replace("mm_image", "mm_vision").replace("image_proj", "mm_proj")] = config.pop(name)
        config["model_type"] = "llava"
        shapes = {
            name.replace("image_spatial_proj.", "").replace("image_tower", "vision_tower"): shape
            for name, shape in shapes.items()
        }
    check_places(config, shapes, tmp_path, {"lm_head.bias"} if family == "phi" else set())


@pytest.mark.parametrize("since", ["before 4.52", "since"])
def test_llava_as_transformers_publishes_it(since: str, tmp_path: Path) -> None:
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064}
    config = {"model_type": "llava", "text_config": text, "vision_config": KNOWN[CLIP], "image_token_index": 32000}
    config |= {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu"}
    with torch.device("meta"):
        stock = LlavaForConditionalGeneration(LlavaConfig(**config))
    names = {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}
    if since != "since":
        names = {before_4_52(name): shape for name, shape in names.items()}
    assert check_places(config, names, tmp_path, set()).image_seq_length == 576


def check_places(config: dict[str, Any], shapes: Shapes, folder: Path, lacking: set[str]) -> MoeLlavaConfig:
    """Every tensor fits into the model of that config.json, whose places are all filled but for those lacking."""
    (folder / "config.json").write_text(json.dumps(config))
    layout = read_layout(folder)
    ours = layout.config(layout.tower_config(None))
    placer = Placer(ours, layout.family)
    placer.add(0, shapes, LLAVA_HF_NAMES if layout.stock else (*COMMON_NAMES, *layout.family.names), IGNORED)
    assert (placer.missing(), placer.placement.unexpected) == ([], [])
    check_shapes(placer.placement, placer.shapes, [{name: (shape, torch.bfloat16) for name, shape in shapes.items()}])
    assert placer.shapes.keys() - placer.placement.pieces.keys() == lacking
    return ours
