"""Patch features -> pseudo text tokens."""

import re

import torch
from jaxtyping import Float
from torch import Tensor, nn

_VOCABULARY = re.compile(r"vocabulary([1-9]\d*)")
_CONTEXT = 0.8  # share of the picture's mean in a patch that is scored
_VARIANCE = 1e-6  # added to a variance, so that the spread of a single patch has a gradient


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


class VocabularyProjector(nn.Module):
    """`vocabulary{n}`: each patch is a mixture of `n` learned words.

    The words are embeddings like those of text, mixed by a softmax over their scores, as Ovis (arXiv 2405.20797) has
    them; here a patch is scored in the context of its picture. `train.vocabulary` gives the words a start.
    """

    def __init__(self, words: int, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.scores = nn.Linear(2 * vision_width, words)
        self.words = nn.Linear(words, text_width, bias=False)

    def forward(self, features: Float[Tensor, "image patch channel"]) -> Float[Tensor, "image patch width"]:
        shares = self.scores(in_context(features)).softmax(dim=-1, dtype=torch.float32)
        return self.words(shares.to(features.dtype))


def in_context(features: Float[Tensor, "image patch channel"]) -> Float[Tensor, "image patch scored"]:
    """Each patch, drawn four fifths of the way to the picture's mean; beside it the spread of the picture's patches.

    Averaged over a picture: the mean and the standard deviation of each channel.
    """
    variance, mean = torch.var_mean(features, dim=1, keepdim=True, correction=0)
    spread = (variance + _VARIANCE).sqrt()
    return torch.cat([torch.lerp(features, mean, _CONTEXT), spread.expand_as(features)], dim=-1)


def build_projector(projector_type: str, vision_width: int, text_width: int) -> Projector | VocabularyProjector:
    """A new projector of a type.

    Raises:
        ValueError: a type this library does not have.
    """
    if match := _VOCABULARY.fullmatch(projector_type):
        return VocabularyProjector(int(match[1]), vision_width, text_width)
    return Projector(projector_type, vision_width, text_width)


def projector_depth(projector_type: str) -> int:
    """Number of linear layers of a `Projector`.

    Raises:
        ValueError: a type this library does not have.
    """
    if projector_type == "linear":
        return 1
    if match := re.fullmatch(r"mlp([1-9]\d*)x_gelu", projector_type):
        return int(match[1])
    raise ValueError(
        f"projector_type = {projector_type!r} is not supported: use 'linear', 'mlp2x_gelu' or 'vocabulary512'."
    )
