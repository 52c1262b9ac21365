"""Patch features -> pseudo text tokens."""

import re

from jaxtyping import Float
from torch import Tensor, nn


class Projector(nn.Sequential):
    """`linear`, or `mlp{n}x_gelu`: n linear layers with GELU between them (LLaVA-1.5's is `mlp2x_gelu`)."""

    def __init__(self, projector_type: str, vision_width: int, text_width: int) -> None:
        depth = projector_depth(projector_type)
        layers: list[nn.Module] = [nn.Linear(vision_width, text_width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(text_width, text_width)]
        super().__init__(*layers)

    def forward(self, features: Float[Tensor, "image patch channel"]) -> Float[Tensor, "image patch width"]:
        return super().forward(features)


def projector_depth(projector_type: str) -> int:
    """Number of linear layers of a projector type.

    Raises:
        ValueError: a type this library does not have.
    """
    if projector_type == "linear":
        return 1
    if match := re.fullmatch(r"mlp([1-9]\d*)x_gelu", projector_type):
        return int(match[1])
    raise ValueError(f"projector_type = {projector_type!r} is not supported: use 'linear' or 'mlp2x_gelu'.")
