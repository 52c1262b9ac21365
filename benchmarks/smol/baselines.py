"""What the frozen tower's features tell without a language model: nearest neighbour and linear probe.

Both see what the projector's scores see, averaged over the image, and the same pictures to learn from.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

PENALTIES = (1e-4, 1e-3, 1e-2)
_STEPS = 60


class Standard:
    """Zero mean and unit spread of each channel, as measured on the pictures to learn from."""

    def __init__(self, features: Float[Tensor, "image channel"]) -> None:
        self.mean, self.spread = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)

    def __call__(self, features: Float[Tensor, "image channel"]) -> Float[Tensor, "image channel"]:
        return (features - self.mean) / self.spread


def nearest(known: Tensor, labels: Sequence[str], asked: Tensor) -> list[str]:
    """Label of the known picture with the largest cosine."""
    similarity = F.normalize(asked, dim=1) @ F.normalize(known, dim=1).T
    return [labels[index] for index in similarity.argmax(dim=1).tolist()]


def linear_probe(known: Tensor, labels: Sequence[str], asked: Tensor, penalty: float) -> list[str]:
    """Label by multinomial logistic regression with an L2 penalty, fitted by L-BFGS."""
    names = sorted(set(labels))
    targets = torch.tensor([names.index(label) for label in labels])
    weight = torch.zeros(len(names), known.shape[1], requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(known @ weight.T + bias, targets) + penalty * weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return [names[index] for index in (asked @ weight.T + bias).argmax(dim=1).tolist()]


def choose_penalty(known: Tensor, labels: Sequence[str], styles: Sequence[str]) -> float:
    """The penalty that names the last training style best when it is left out: the test is never looked at."""
    left_out = sorted(set(styles))[-1]
    inside = torch.tensor([style != left_out for style in styles])
    inner = [label for label, keep in zip(labels, inside.tolist(), strict=True) if keep]
    outer = [label for label, keep in zip(labels, inside.tolist(), strict=True) if not keep]
    right = {
        penalty: sum(
            one == other
            for one, other in zip(linear_probe(known[inside], inner, known[~inside], penalty), outer, strict=True)
        )
        for penalty in PENALTIES
    }
    return max(right, key=lambda penalty: right[penalty])
