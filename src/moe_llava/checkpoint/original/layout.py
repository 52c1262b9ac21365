"""config.json of a published checkpoint -> what it is, and the configuration of the same model here."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from moe_llava.checkpoint.original.families import FAMILIES, LLAMA, Family
from moe_llava.checkpoint.original.towers import tower_config
from moe_llava.checkpoint.tables import read_table
from moe_llava.model.config import MoeLlavaConfig, sparse_text_config
from moe_llava.model.projector import projector_depth
from moe_llava.model.vision import tower_shape

# Fields that every configuration of transformers understands, beside those of its own class.
_SHARED = (
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
)
_SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Tokens in front of the patches that a selection of features drops.
_PREFIX_TOKENS = {"patch": 1, "cls_patch": 0}


@dataclass(frozen=True)
class Layout:
    """What a source's config.json says.

    `stock` marks transformers' own LLaVA-1.5 layout; all others are MoE-LLaVA's or LLaVA's own.
    """

    raw: dict[str, Any]
    family: Family
    stock: bool
    tower_name: str | None
    projector_type: str
    feature_layer: int | list[int]
    prefix_tokens: int
    pads: bool

    def text_config(self) -> PreTrainedConfig:
        """Configuration of the decoder, sparse where the source is."""
        try:
            if self.stock:
                return AutoConfig.for_model(**{"model_type": "llama", **self.raw["text_config"]})
            dense = CONFIG_MAPPING[self.family.model_type](**text_fields(self.family, self.raw))
        except StrictDataclassError as error:
            raise ValueError(f"config.json describes no decoder: {' '.join(str(error).split())}") from error
        sparse = sparse_options(self.raw)
        try:
            return sparse_text_config(dense, **sparse) if sparse else dense
        except ValueError as error:
            raise ValueError(f"config.json, in its table moe: {error}") from error

    def tower_config(self, folder: Path | None) -> PreTrainedConfig:
        """Configuration of the tower: the source's own, or that of the tower's folder or name."""
        if self.stock:
            return AutoConfig.for_model(**{"model_type": "clip_vision_model", **(self.raw.get("vision_config") or {})})
        return tower_config(self.tower_name, folder)

    def config(self, tower: PreTrainedConfig) -> MoeLlavaConfig:
        """Configuration of the whole model; the image token lies behind the vocabulary until a tokenizer says more."""
        text_config = self.text_config()
        shape = tower_shape(tower, tower.image_size, tower.image_size, self.feature_layer)
        return MoeLlavaConfig(
            text_config=text_config.to_dict(),
            vision_config=tower.to_dict(),
            image_token_id=self.raw.get("image_token_id", self.raw.get("image_token_index", text_config.vocab_size)),
            image_seq_length=shape.tokens + shape.prefix_tokens - self.prefix_tokens,
            vision_hidden_size=shape.width,
            vision_feature_layer=self.feature_layer,
            vision_prefix_tokens=self.prefix_tokens,
            projector_type=self.projector_type,
        )


def read_layout(folder: Path) -> Layout:
    """Read and judge a source's config.json.

    Raises:
        ValueError: it is no checkpoint of these families, or one that computes something this library does not.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json.")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds LoRA adapters, not a model: merge them with the tools that made them first.")
    return judge(read_table(path), path)


def judge(raw: dict[str, Any], path: Path) -> Layout:
    """What a config.json says; `path` stands in the errors, which are those of `read_layout`."""
    kind = str(raw.get("model_type", ""))
    if kind == MoeLlavaConfig.model_type:
        raise ValueError(f"{path.parent} is a checkpoint of this library already: use it as it is.")
    if kind == "llava" and isinstance(raw.get("text_config"), dict):
        return _stock_layout(raw)
    if "llava" not in kind:
        raise ValueError(
            f"{path}: model_type {kind!r} is no LLaVA. Known are llava, and llava_NAME or moe_llava_NAME of "
            f"{', '.join(FAMILIES)}."
        )
    return _own_layout(path, raw, kind)


def _own_layout(path: Path, raw: dict[str, Any], kind: str) -> Layout:
    name = kind.removeprefix("moe_").removeprefix("llava").removeprefix("_")
    family = LLAMA if name == "" else FAMILIES.get(name)
    if family is None:
        raise ValueError(f"{path}: model_type {kind!r} is not supported: its decoder is none of {', '.join(FAMILIES)}.")
    if raw.get("mm_video_tower"):
        raise ValueError(f"{path}: the model has a video tower ({raw['mm_video_tower']}), which is not supported.")
    if raw.get("mm_use_im_start_end"):
        raise ValueError(f"{path}: mm_use_im_start_end is on; prompts of that kind are not supported.")
    ratio = raw.get("image_aspect_ratio") or "square"
    if ratio not in ("square", "pad"):
        raise ValueError(f"{path}: image_aspect_ratio {ratio!r} is not supported: only 'square' and 'pad' are.")
    projector = raw.get("image_projector_type") or raw.get("mm_projector_type") or "linear"
    _check_projector(path, projector)
    select = raw.get("mm_vision_select_feature") or "patch"
    if select not in _PREFIX_TOKENS:
        raise ValueError(f"{path}: mm_vision_select_feature {select!r} is not supported: only 'patch' and 'cls_patch'.")
    layer = raw.get("mm_vision_select_layer", -1)
    if not isinstance(layer, int):
        raise ValueError(f"{path}: mm_vision_select_layer is {layer!r}: the number of one layer is needed.")
    return Layout(
        raw=raw,
        family=family,
        stock=False,
        tower_name=raw.get("mm_image_tower") or raw.get("mm_vision_tower"),
        projector_type=projector,
        feature_layer=layer,
        prefix_tokens=_PREFIX_TOKENS[select],
        pads=ratio == "pad",
    )


def _stock_layout(raw: dict[str, Any]) -> Layout:
    if raw.get("multimodal_projector_bias", True) is not True or raw.get("projector_hidden_act", "gelu") != "gelu":
        raise ValueError("The projector has no bias or another activation than GELU, which is not supported.")
    return Layout(
        raw=raw,
        family=LLAMA,
        stock=True,
        tower_name=None,
        projector_type="mlp2x_gelu",
        feature_layer=raw.get("vision_feature_layer", -2),
        prefix_tokens=0 if raw.get("vision_feature_select_strategy", "default") == "full" else 1,
        pads=False,
    )


def _check_projector(path: Path, projector: str) -> None:
    try:
        projector_depth(projector)
    except ValueError:
        raise ValueError(
            f"{path}: the projector {projector!r} is not supported: this library has `linear` and `mlp{{n}}x_gelu`, "
            "which all published models use."
        ) from None


def text_fields(family: Family, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a decoder's configuration, from those of the source.

    Raises:
        ValueError: a field that the decoder's shape needs is missing, or no number.
    """
    if missing := [name for name in _SHAPE if raw.get(name) is None]:
        raise ValueError(f"config.json lacks {', '.join(missing)}.")
    for name in _SHAPE:
        if not isinstance(raw[name], int) or raw[name] < 1:
            raise ValueError(f"config.json: {name} is {raw[name]!r}: a whole number above zero is needed.")
    known = {item.name for item in dataclasses.fields(CONFIG_MAPPING[family.model_type])}
    fields = {name: raw[name] for name in (*sorted(known), *_SHARED) if raw.get(name) is not None}
    for own in ("model_type", "architectures", "transformers_version", "dtype"):
        fields.pop(own, None)
    try:
        for name, there in family.fields.items():
            value = raw.get(there) if isinstance(there, str) else there(raw)
            if value is not None:
                fields[name] = value
    except KeyError as error:
        raise ValueError(f"config.json lacks the field {error}.") from error
    return fields


def sparse_options(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What `sparse_text_config` needs to know, from the original's `moe` table; empty for a dense model.

    One choice: the top gate is not renormalised by the original when it is alone.

    Raises:
        ValueError: a residual expert, experts in files of their own, or layers with different numbers of experts.
    """
    moe = raw.get("moe") or {}
    if not str(raw["model_type"]).startswith("moe_"):
        return {}
    if not isinstance(moe, dict):
        raise ValueError(f"config.json: moe is {moe!r}: a table is needed.")
    if not moe.get("moe_enable"):
        return {}
    if moe.get("use_residual"):
        raise ValueError("moe.use_residual is on: experts beside a dense network are not supported.")
    if moe.get("ep_size", 1) != 1:
        raise ValueError("moe.ep_size is not 1: experts saved by several processes are not supported; gather them.")
    counts = moe.get("num_experts") or []
    counts = counts if isinstance(counts, list) else [counts]
    if len(set(counts)) != 1:
        raise ValueError(f"moe.num_experts = {counts}: layers must have the same number of experts.")
    if not isinstance(layers := moe.get("moe_layers_idx"), list):
        raise ValueError(f"config.json: moe.moe_layers_idx is {layers!r}: the list of the sparse layers is needed.")
    top_k = int(moe.get("top_k_experts", 2))
    return {
        "layers": layers,
        "num_experts": int(counts[0]),
        "top_k": top_k,
        "normalize_gates": top_k > 1,
        "balance_coefficient": float(moe.get("router_aux_loss_coef", 0.01)),
    }
