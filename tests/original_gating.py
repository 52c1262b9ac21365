"""An oracle: the gating of the original's engine (DeepSpeed 0.9.5), written from its formulas, independent of `src`.

All tokens of a micro-batch compete for each expert's `capacity` places; who finds none loses that expert.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Gating:
    """`combine (token, expert, place)`; its sum over places are the weights of each token's experts."""

    combine: Tensor
    aux_loss: Tensor
    first_choices: Tensor

    @property
    def weights(self) -> Tensor:
        return self.combine.sum(dim=-1)


def capacity(tokens: int, experts: int, factor: float, minimum: int) -> int:
    return max(math.ceil(tokens / experts * factor), minimum)


def gate(logits: Tensor, k: int, factor: float, minimum: int, noise: Tensor | None) -> Gating:
    """Top-2: `noise` is Gumbel noise on the choice of the second expert. Top-1: uniform numbers that decide who stays
    where an expert has too many."""
    return _top2(logits, factor, minimum, noise) if k == 2 else _top1(logits, factor, minimum, noise)


def _top1(logits: Tensor, factor: float, minimum: int, uniform: Tensor | None) -> Gating:
    tokens, experts = logits.shape
    places = capacity(tokens, experts, factor, minimum)
    probabilities = logits.softmax(dim=1)
    chosen = _one_hot(probabilities.argmax(dim=1), experts)
    aux_loss = experts * (probabilities.mean(dim=0) * chosen.mean(dim=0)).sum()
    draw = chosen * (uniform if uniform is not None else 1.0)
    stays = torch.zeros_like(chosen).scatter_(0, draw.topk(places, dim=0)[1], 1.0)
    kept = chosen * stays
    place = ((kept.cumsum(dim=0) - 1) * kept).sum(dim=1).long()
    combine = (probabilities * kept)[:, :, None] * _one_hot(place, places)[:, None, :]
    return Gating(combine, aux_loss, chosen.sum(dim=0))


def _top2(logits: Tensor, factor: float, minimum: int, gumbel: Tensor | None) -> Gating:
    tokens, experts = logits.shape
    places = capacity(tokens, experts, 2 * factor, minimum)
    probabilities = logits.softmax(dim=1)
    first = _one_hot(probabilities.argmax(dim=1), experts)
    noisy = logits if gumbel is None else logits + gumbel
    second = _one_hot(noisy.masked_fill(first.bool(), float("-inf")).argmax(dim=1), experts)
    aux_loss = experts * (probabilities.mean(dim=0) * first.mean(dim=0)).sum()
    # Every first choice stands before every second choice, dropped ones included.
    rows = [(first, first.cumsum(dim=0) - 1), (second, second.cumsum(dim=0) - 1 + first.sum(dim=0))]
    kept = [(mask * (row < places), row) for mask, row in rows]
    weights = [(probabilities * mask).sum(dim=1) for mask, _ in kept]
    total = (weights[0] + weights[1]).clamp(min=torch.finfo(logits.dtype).eps)
    combine = torch.zeros(tokens, experts, places)
    for weight, (mask, row) in zip(weights, kept, strict=True):
        place = (row * mask).sum(dim=1).long()
        combine = combine + (weight / total)[:, None, None] * mask[:, :, None] * _one_hot(place, places)[:, None, :]
    return Gating(combine, aux_loss, first.sum(dim=0))


def _one_hot(index: Tensor, size: int) -> Tensor:
    return F.one_hot(index, size).float()
