"""Pixels -> patch features, for any tower."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel


def patch_features(
    tower: PreTrainedModel,
    pixel_values: Float[Tensor, "image 3 height width"],
    feature_layer: int | list[int] | None,
    prefix_tokens: int,
) -> Float[Tensor, "image patch channel"]:
    """Read hidden states of a vision tower as a sequence of patches, in reading order.

    A convolutional tower's map `(image, channel, row, column)` becomes `row * column` patches and has no prefix tokens.
    Several layers lie side by side in the channels, as in transformers' LLaVA; maps are averaged down to the coarsest.

    Raises:
        ValueError: the tower has no such layer, or none is named.
    """
    if feature_layer is None:
        read = [tower(pixel_values).last_hidden_state]
    else:
        states = tower(pixel_values, output_hidden_states=True).hidden_states
        layers = feature_layer if isinstance(feature_layer, list) else [feature_layer]
        if not layers or any(not -len(states) <= layer < len(states) for layer in layers):
            raise ValueError(
                f"feature_layer = {feature_layer}: the tower has the hidden states 0 to {len(states) - 1}, or "
                f"{-len(states)} to -1 from the end; name one or more of them."
            )
        read = [states[layer] for layer in layers]
    if read[0].ndim == 4:
        grid = min(tuple(one.shape[-2:]) for one in read)
        maps = [one if one.shape[-2:] == grid else F.adaptive_avg_pool2d(one, grid) for one in read]
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)
    return torch.cat(read, dim=-1)[:, prefix_tokens:]


@dataclass(frozen=True)
class TowerShape:
    """What a tower gives for one image, and how many of its first tokens are not patches."""

    tokens: int
    width: int
    prefix_tokens: int


def tower_shape(
    vision_config: PreTrainedConfig, height: int, width: int, feature_layer: int | list[int] | None = None
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
