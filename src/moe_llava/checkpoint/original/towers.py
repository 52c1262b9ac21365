"""Vision towers of published checkpoints: by folder, by hub id, or by a name whose shape is known."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    SiglipImageProcessorPil,
)

from moe_llava.checkpoint.hub import fetch

# A checkpoint that holds its tower's weights needs only the shape, which its config.json does not state.
_CLIP_L = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
_CLIP_L |= {"num_attention_heads": 16, "patch_size": 14, "projection_dim": 768}
KNOWN: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {**_CLIP_L, "image_size": 336},
    "openai/clip-vit-large-patch14": {**_CLIP_L, "image_size": 224},
    "google/siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 384,
    },
}


def tower_folder(name: str | None, given: str | Path | None, weights_inside: bool) -> Path | None:
    """Where a tower's files are; `None` if the checkpoint has the weights and the shape is known.

    Raises:
        ValueError: it is nowhere; the sentence says what to fetch.
    """
    if given is not None:
        return fetch(str(given), what="the vision tower", remedy="Give its folder with --vision-tower.")
    if name is None:
        raise ValueError("config.json names no vision tower (mm_image_tower): give its folder with --vision-tower.")
    if Path(name).is_dir():
        return Path(name)
    if weights_inside and name in KNOWN:
        return None
    return fetch(name, what="the vision tower", remedy="Or convert with --vision-tower and its folder.")


def tower_config(name: str | None, folder: Path | None) -> PreTrainedConfig:
    """Configuration of a tower, by its folder, else by its name; of a whole CLIP or SigLIP, that of its image side."""
    if folder is None and name in KNOWN:
        return AutoConfig.for_model(**KNOWN[name])
    if folder is not None and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no vision tower: it has no config.json.")
    try:
        config = AutoConfig.from_pretrained(str(folder or name))
    except OSError as error:
        raise ValueError(f"The configuration of the vision tower {folder or name} cannot be read: {error}") from error
    config = getattr(config, "vision_config", config)
    if not hasattr(config, "image_size") or not hasattr(config, "num_hidden_layers"):
        raise ValueError(f"{folder or name} is no vision tower that is supported: its type is {config.model_type}.")
    return config


def tower_pixels(config: PreTrainedConfig, *folders: Path | None) -> Any:
    """The tower's own preparation of pixels: from the first folder that has it, else its type's usual one."""
    for folder in folders:
        if folder is not None and (folder / "preprocessor_config.json").is_file():
            return AutoImageProcessor.from_pretrained(folder, backend="pil")
    side = config.image_size
    if config.model_type.startswith("siglip"):
        return SiglipImageProcessorPil(size={"height": side, "width": side})
    if config.model_type.startswith("clip"):
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    raise ValueError(f"A {config.model_type} tower needs its preprocessor_config.json beside its config.json.")
