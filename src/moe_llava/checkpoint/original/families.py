"""The decoder families of published checkpoints: what their configurations and tensors are called there. Data only."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import CodeGenTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

Field = str | Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Family:
    """One decoder family.

    Args:
        model_type: transformers' name of the architecture.
        template: chat template of the published models.
        vocabulary: the files of the published models that a tokenizer is built from where there is no tokenizer.json.
        end_mark: token that ends an answer; `None` for the end mark that the tokenizer itself states.
        fields: our configuration field -> its name there, or how it follows from what stands there. Fields of the
            same name are taken over.
        names: (pattern, replacement) for tensor names, after those of `COMMON_NAMES`.
        split: a tensor there whose rows are several tensors of ours, in equal blocks.
        zeros: tensors of ours that the original lacks, and computes as if they were zero.
        byte_pairs: reads vocab.json with merges.txt; families differ in how they cut a text before merging.
    """

    model_type: str
    template: str
    vocabulary: tuple[str, ...]
    end_mark: str | None = None
    fields: Mapping[str, Field] = field(default_factory=dict)
    names: tuple[tuple[str, str], ...] = ()
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    zeros: tuple[str, ...] = ()
    byte_pairs: type[PreTrainedTokenizerBase] = CodeGenTokenizer


# What DeepSpeed, the towers' wrappers and the projectors of MoE-LLaVA and LLaVA-1.5 are called, whatever the decoder.
COMMON_NAMES = (
    (r"\.mlp\.deepspeed_moe\.gate\.wg\.", ".mlp.gate."),
    (r"\.mlp\.deepspeed_moe\.experts\.deepspeed_experts\.", ".mlp.experts."),
    (r"^transformer\.(?=image_tower|mm_projector)", "model."),
    (r"^model\.(?:image_tower\.image|vision_tower\.vision)_tower\.", "model.vision_tower."),
    (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
    (
        r"^(?:model|transformer)\.mm_projector\.(?:image_spatial_proj\.)?(?=weight|bias)",
        "model.multi_modal_projector.0.",
    ),
    (r"^model\.mm_projector\.(?:image_spatial_proj\.)?", "model.multi_modal_projector."),
    (r"^model\.(?=embed_tokens|layers|norm\.|final_layernorm)", "model.language_model."),
)
# LLaVA-1.5 as transformers writes it, before and since its 4.52.
LLAVA_HF_NAMES = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(?=vision_tower|multi_modal_projector)", "model."),
    (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
    (r"\.multi_modal_projector\.linear_1\.", ".multi_modal_projector.0."),
    (r"\.multi_modal_projector\.linear_2\.", ".multi_modal_projector.2."),
)
# Towers of their own, and whole CLIP or SigLIP models, of which only the image side is read.
TOWER_NAMES = ((r"^(?:vision_model\.)?", "model.vision_tower."),)
# Tensors that carry nothing: tables computed from the configuration, and the text side of a whole CLIP or SigLIP.
IGNORED = (
    r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$",
    r"\.embeddings\.position_ids$",
    r"\.attn\.(masked_bias|bias)$",
)
IGNORED_IN_TOWER = (*IGNORED, r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_(scale|bias)$")

SENTENCEPIECE = ("tokenizer.model",)
BYTE_PAIRS = ("vocab.json", "merges.txt")

LLAMA = Family("llama", "vicuna", SENTENCEPIECE)
MISTRAL = Family("mistral", "vicuna", SENTENCEPIECE)
QWEN1_5 = Family("qwen2", "qwen", BYTE_PAIRS, "<|endoftext|>", byte_pairs=Qwen2Tokenizer)
PHI = Family("phi", "phi", BYTE_PAIRS, "<|endoftext|>", zeros=("lm_head.bias",))
STABLELM = Family(
    "stablelm",
    "stablelm",
    ("arcade100k.tiktoken",),
    "<|endoftext|>",
    fields={
        "layer_norm_eps": "norm_eps",
        "partial_rotary_factor": "rope_pct",
        "use_qkv_bias": lambda there: there.get("use_qkv_bias", True),
    },
)
# Qwen (v1) computes what Qwen2 computes: one matrix for query, key and value; the gate is w2; half the stated width.
QWEN = Family(
    "qwen2",
    "qwen",
    ("qwen.tiktoken",),
    "<|endoftext|>",
    fields={
        "intermediate_size": lambda there: there["intermediate_size"] // 2,
        "num_key_value_heads": "num_attention_heads",
        "rms_norm_eps": "layer_norm_epsilon",
        "rope_theta": "rotary_emb_base",
        "max_position_embeddings": "seq_length",
    },
    names=(
        (r"^transformer\.wte\.", "model.language_model.embed_tokens."),
        (r"^transformer\.ln_f\.", "model.language_model.norm."),
        (r"^transformer\.h\.", "model.language_model.layers."),
        (r"\.ln_1\.", ".input_layernorm."),
        (r"\.ln_2\.", ".post_attention_layernorm."),
        (r"\.attn\.c_proj\.", ".self_attn.o_proj."),
        (r"\.w1\.", ".up_proj."),
        (r"\.w2\.", ".gate_proj."),
        (r"(\.mlp\.(?:experts\.\d+\.)?)c_proj\.", r"\1down_proj."),
    ),
    split={"attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
)
# MiniCPM is Granite's arithmetic with other names. Embeddings stay unscaled: the original scales them in its decode
# steps alone, neither in training nor for a prompt with images.
MINICPM = Family(
    "granite",
    "vicuna",
    SENTENCEPIECE,
    fields={
        "embedding_multiplier": lambda there: 1.0,
        "attention_multiplier": lambda there: (there["hidden_size"] / there["num_attention_heads"]) ** -0.5,
        "residual_multiplier": lambda there: there["scale_depth"] / math.sqrt(there["num_hidden_layers"]),
        "logits_scaling": lambda there: there["hidden_size"] / there["dim_model_base"],
    },
)

# `model_type` of a configuration, without `moe_` and `llava_` in front -> family.
FAMILIES = {
    "stablelm": STABLELM,
    "stablelm_epoch": STABLELM,
    "phi": PHI,
    "qwen": QWEN,
    "qwen1_5": QWEN1_5,
    "qwen2": QWEN1_5,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "minicpm": MINICPM,
}
