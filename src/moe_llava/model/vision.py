"""Pixels -> patch features, for any tower."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel


def patch_features(
    tower: PreTrainedModel,
    pixel_values: Float[Tensor, "image 3 height width"],
    feature_layer: int | None,
    prefix_tokens: int,
) -> Float[Tensor, "image patch channel"]:
    """Read one hidden state of a vision tower as a sequence of patches, in reading order.

    A convolutional tower's map `(image, channel, row, column)` becomes `row * column` patches and has no prefix tokens.
    """
    if feature_layer is None:
        hidden = tower(pixel_values).last_hidden_state
    else:
        hidden = tower(pixel_values, output_hidden_states=True).hidden_states[feature_layer]
    if hidden.ndim == 4:
        return hidden.flatten(2).transpose(1, 2)
    return hidden[:, prefix_tokens:]


@dataclass(frozen=True)
class TowerShape:
    """What a tower gives for one image, and how many of its first tokens are not patches."""

    tokens: int
    width: int
    prefix_tokens: int


def tower_shape(
    vision_config: PreTrainedConfig, height: int, width: int, feature_layer: int | None = None
) -> TowerShape:
    """Measure a tower's output on the meta device: no weights, no arithmetic.

    Prefix tokens are what remains of the sequence beyond the largest square grid of whole patches (class token,
    registers); a configuration without `patch_size` is taken to have none.
    """
    with torch.device("meta"), torch.no_grad():
        tower = AutoModel.from_config(vision_config).eval()
        features = patch_features(tower, torch.empty(1, 3, height, width), feature_layer, prefix_tokens=0)
    tokens, channels = features.shape[1:]
    patch = getattr(vision_config, "patch_size", None)
    grid = (height // patch) * (width // patch) if isinstance(patch, int) else tokens
    return TowerShape(tokens=grid, width=channels, prefix_tokens=tokens - grid)


def grid_size(num_patches: int) -> tuple[int, int]:
    """Rows and columns of a square grid of patches.

    Raises:
        ValueError: the patches do not fill a square.
    """
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(f"{num_patches} patches do not fill a square grid.")
    return side, side


def patch_grid(num_patches: int, prefix_tokens: int = 0) -> tuple[int, int, int] | None:
    """Rows and columns of a tower's grid, and the cell of the first patch; `None` where no square fits.

    The first cell is not 0 where a tower without a class token loses its first patch as if it had one, as published
    SigLIP checkpoints of MoE-LLaVA do (728 of 27 x 27).
    """
    for first in dict.fromkeys((0, prefix_tokens)):
        try:
            return *grid_size(num_patches + first), first
        except ValueError:
            continue
    return None
