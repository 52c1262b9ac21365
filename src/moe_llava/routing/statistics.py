"""What routes tell: loads, modality, entropy, margins, transitions; sums over tokens, so any number of them fits."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from moe_llava.model.balance import max_violation
from moe_llava.routing.routes import RouteFile, RouteInfo, Routes

MODALITIES = ("text", "image")
BINS = 100


@dataclass
class RouteStatistics:
    """Sums over the tokens of a trace. The first axis of each array is the modality: text, image.

    Attributes:
        tokens: how many there are.
        chosen: how often each expert was among the chosen.
        first: how often it was the first choice.
        weight: the sum of the weights it was given.
        entropy: histogram of the router's entropy as a share of its maximum, in `BINS` bins from 0 to 1.
        margin: histogram of the distance of the two largest probabilities, likewise.
        entropy_sum, margin_sum: sums of the two, the entropy in nats.
        transitions: first choices of a sparse layer (row) and the next (column).
    """

    info: RouteInfo
    samples: int
    tokens: Int[np.ndarray, " modality"]
    chosen: Int[np.ndarray, "modality layer expert"]
    first: Int[np.ndarray, "modality layer expert"]
    weight: Float[np.ndarray, "modality layer expert"]
    entropy: Int[np.ndarray, "modality layer bin"]
    margin: Int[np.ndarray, "modality layer bin"]
    entropy_sum: Float[np.ndarray, "modality layer"]
    margin_sum: Float[np.ndarray, "modality layer"]
    transitions: Int[np.ndarray, "modality pair expert expert"]

    @classmethod
    def empty(cls, info: RouteInfo) -> "RouteStatistics":
        layers, experts, kinds = len(info.layers), info.num_experts, len(MODALITIES)

        def zeros(*shape: int, dtype: type = np.int64) -> np.ndarray:
            return np.zeros((kinds, *shape), dtype=dtype)

        return cls(
            info=info,
            samples=0,
            tokens=zeros(),
            chosen=zeros(layers, experts),
            first=zeros(layers, experts),
            weight=zeros(layers, experts, dtype=np.float64),
            entropy=zeros(layers, BINS),
            margin=zeros(layers, BINS),
            entropy_sum=zeros(layers, dtype=np.float64),
            margin_sum=zeros(layers, dtype=np.float64),
            transitions=zeros(max(layers - 1, 0), experts, experts),
        )

    def update(self, routes: Routes) -> None:
        """Add some tokens."""
        self.samples = max(self.samples, int(routes.sample.max(initial=-1)) + 1)
        for kind in range(len(MODALITIES)):
            of_kind = routes.is_image == bool(kind)
            self._add(kind, routes.experts[of_kind], routes.weights[of_kind])
            self._add_spread(kind, routes.entropy[of_kind], routes.margin[of_kind])

    def _add(self, kind: int, experts: np.ndarray, weights: np.ndarray) -> None:
        number = self.info.num_experts
        self.tokens[kind] += len(experts)
        for layer in range(len(self.info.layers)):
            chosen = experts[:, layer].reshape(-1)
            self.chosen[kind, layer] += np.bincount(chosen, minlength=number)
            self.weight[kind, layer] += np.bincount(chosen, weights[:, layer].reshape(-1), minlength=number)
            first = experts[:, layer, 0].astype(np.int64)
            self.first[kind, layer] += np.bincount(first, minlength=number)
            if layer:
                pairs = experts[:, layer - 1, 0].astype(np.int64) * number + first
                counts = np.bincount(pairs, minlength=number * number)
                self.transitions[kind, layer - 1] += counts.reshape(number, number)

    def _add_spread(self, kind: int, entropy: np.ndarray, margin: np.ndarray) -> None:
        self.entropy_sum[kind] += entropy.sum(axis=0, dtype=np.float64)
        self.margin_sum[kind] += margin.sum(axis=0, dtype=np.float64)
        shares = entropy / max(math.log(self.info.num_experts), 1e-12)
        for layer in range(len(self.info.layers)):
            self.entropy[kind, layer] += _histogram(shares[:, layer])
            self.margin[kind, layer] += _histogram(margin[:, layer])

    def load(self, kind: int | None = None) -> Float[np.ndarray, "layer expert"]:
        """Each expert's share of its layer's choices, of one modality or of all; 1/E is even."""
        return _shares(self.chosen.sum(axis=0) if kind is None else self.chosen[kind])

    def image_share(self) -> Float[np.ndarray, "layer expert"]:
        """Each expert's preference: its load by images in proportion to both loads, as if there were as much of both.

        0.5 is no preference, 1 an expert of images alone; undefined (nan) for an expert that nothing chose.
        """
        text, image = (_shares(self.chosen[kind]) for kind in range(len(MODALITIES)))
        with np.errstate(invalid="ignore"):
            return image / (image + text)

    def information(self) -> Float[np.ndarray, " layer"]:
        """Mutual information of first choice and modality, in bits: what an expert's number tells of the modality."""
        return np.array([_information(self.first[:, layer]) for layer in range(len(self.info.layers))])

    def information_by_chance(self) -> float:
        """What `information` would show without any relation: `(E - 1) / (2 N ln 2)` bits (Miller, 1955)."""
        return (self.info.num_experts - 1) / (2 * max(int(self.tokens.sum()), 1) * math.log(2))

    def modality_entropy(self) -> float:
        """Entropy of the modality of a token, in bits: the most that `information` can be."""
        return _entropy(self.tokens)

    def transition_information(self) -> Float[np.ndarray, " pair"]:
        """Mutual information of first choices in consecutive sparse layers, in bits; at most log2 E."""
        return np.array([_information(counts) for counts in self.transitions.sum(axis=0)])

    def max_violation(self, kind: int | None = None) -> Float[np.ndarray, " layer"]:
        """MaxVio of each layer: by how much the largest load exceeds an even one."""
        counts = self.chosen.sum(axis=0) if kind is None else self.chosen[kind]
        return max_violation(torch.from_numpy(counts.astype(np.float64))).numpy()

    def dead(self) -> list[tuple[int, int]]:
        """Layers and experts that no token chose."""
        unused = np.argwhere(self.chosen.sum(axis=0) == 0)
        return [(self.info.layers[layer], int(expert)) for layer, expert in unused]

    def mean_entropy(self, kind: int) -> Float[np.ndarray, " layer"]:
        """Mean entropy as a share of its maximum log E."""
        return self.entropy_sum[kind] / max(self.tokens[kind], 1) / max(math.log(self.info.num_experts), 1e-12)

    def mean_margin(self, kind: int) -> Float[np.ndarray, " layer"]:
        """Mean distance of the two largest probabilities."""
        return self.margin_sum[kind] / max(self.tokens[kind], 1)

    def present(self) -> list[int]:
        """The modalities that occur."""
        return [kind for kind in range(len(MODALITIES)) if self.tokens[kind]]

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers, for `statistics.json`."""
        by_kind = {
            MODALITIES[kind]: {
                "tokens": int(self.tokens[kind]),
                "load": self.load(kind).round(6).tolist(),
                "entropy": self.mean_entropy(kind).round(6).tolist(),
                "margin": self.mean_margin(kind).round(6).tolist(),
                "max_violation": self.max_violation(kind).round(6).tolist(),
            }
            for kind in self.present()
        }
        return {
            "model": self.info.model,
            "layers": list(self.info.layers),
            "num_experts": self.info.num_experts,
            "top_k": self.info.top_k,
            "samples": self.samples,
            "tokens": int(self.tokens.sum()),
            "load": self.load().round(6).tolist(),
            "max_violation": self.max_violation().round(6).tolist(),
            "dead_experts": [list(place) for place in self.dead()],
            "modality_information_bits": self.information().round(6).tolist(),
            "modality_information_by_chance_bits": round(self.information_by_chance(), 6),
            "modality_entropy_bits": round(self.modality_entropy(), 6),
            "transition_information_bits": self.transition_information().round(6).tolist(),
            "modalities": by_kind,
        }


def gather(file: RouteFile) -> RouteStatistics:
    """Statistics of a file of routes, read in pieces."""
    statistics = RouteStatistics.empty(file.info)
    for routes in file.routes():
        statistics.update(routes)
    return statistics


def quantile(histogram: Int[np.ndarray, "*layers bin"], level: float) -> Float[np.ndarray, "*layers"]:
    """The value below which `level` of a histogram over 0 to 1 lies, to the width of a bin."""
    cumulative = np.cumsum(histogram, axis=-1)
    reached = cumulative >= level * cumulative[..., -1:]
    return (reached.argmax(axis=-1) + 0.5) / histogram.shape[-1]


def _histogram(values: np.ndarray) -> np.ndarray:
    bins = np.clip((values * BINS).astype(np.int64), 0, BINS - 1)
    return np.bincount(bins, minlength=BINS)


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log2(shares)).sum())


def _information(counts: Int[np.ndarray, "row column"]) -> float:
    """Mutual information of rows and columns of a table of counts, in bits."""
    return max(_entropy(counts.sum(axis=0)) + _entropy(counts.sum(axis=1)) - _entropy(counts.reshape(-1)), 0.0)
