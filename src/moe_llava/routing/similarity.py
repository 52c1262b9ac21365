"""How alike are the experts of a layer: their weights, and what they make of the same tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moe_llava.routing.intervene import mean_network, network_of, run_network, sparse_layers
from moe_llava.routing.score import Scorer

_TOKENS = 1024  # of the answers' text and images, on which outputs are compared


@dataclass(frozen=True)
class Similarity:
    """One layer; `cosine` and `cka` are `(expert, expert)`.

    Attributes:
        identical: all experts are the same, bit by bit.
        cosine: of the weights, all tensors of an expert as one vector.
        cka: linear centred kernel alignment of the outputs (Kornblith et al. 2019): 1 is the same up to
            rotation and scale.
        spread: root mean square of an expert's output minus the mean network's, relative to the latter's.
    """

    identical: bool
    cosine: Tensor
    cka: Tensor
    spread: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "identical": self.identical,
            "cosine": off_diagonal(self.cosine),
            "cka": off_diagonal(self.cka),
            "spread": self.spread,
            "cosine_matrix": self.cosine.tolist(),
            "cka_matrix": self.cka.tolist(),
        }


def off_diagonal(matrix: Float[Tensor, "expert expert"]) -> dict[str, float]:
    """Least, mean and largest value over pairs of different experts; of one expert, 1."""
    if len(matrix) == 1:
        return {"min": 1.0, "mean": 1.0, "max": 1.0}
    values = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    return {"min": values.min().item(), "mean": values.mean().item(), "max": values.max().item()}


@torch.inference_mode()
def similarity(scorer: Scorer) -> dict[int, Similarity]:
    """Each sparse layer -> how alike its experts are, on the tokens that reach it."""
    inputs = layer_inputs(scorer, _TOKENS)
    return {index: _layer_similarity(mlp.experts, inputs[index]) for index, mlp in _layers(scorer).items()}


def _layers(scorer: Scorer) -> dict[int, Any]:
    return sparse_layers(scorer.engine.model)


def layer_inputs(scorer: Scorer, limit: int) -> dict[int, Float[Tensor, "token width"]]:
    """What reaches the router of each sparse layer: at most `limit` tokens, without padding, evenly taken."""
    seen: dict[int, list[Tensor]] = {index: [] for index in _layers(scorer)}
    model: Any = scorer.engine.model
    handles = [
        mlp.gate.register_forward_hook(lambda _, inputs, __, index=index: seen[index].append(inputs[0]))
        for index, mlp in _layers(scorer).items()
    ]
    try:
        for _, batch in scorer.batches:
            given = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
            model.model(**given, use_cache=False)
            real = given["attention_mask"].reshape(-1).bool()
            for tokens in seen.values():
                tokens[-1] = tokens[-1][real]
            if sum(map(len, next(iter(seen.values())))) >= limit:
                break
    finally:
        for handle in handles:
            handle.remove()
    joined = {index: torch.cat(tokens) for index, tokens in seen.items()}
    return {index: tokens[:: -(-len(tokens) // limit)] for index, tokens in joined.items()}


def _layer_similarity(experts: Any, tokens: Float[Tensor, "token width"]) -> Similarity:
    tensors = list(experts.parameters(recurse=False))
    identical = all(bool((tensor == tensor[:1]).all()) for tensor in tensors)
    gram = sum((flat := tensor.flatten(1).float()) @ flat.T for tensor in tensors)
    assert isinstance(gram, Tensor)
    kernels, spreads = [], []
    mean = run_network(experts, mean_network(experts), tokens).float()
    for expert in range(experts.num_experts):
        output = run_network(experts, network_of(experts, expert), tokens).float()
        spreads.append((output - mean).square().mean())
        centred = output - output.mean(dim=0)
        kernels.append((centred @ centred.T).flatten())
    kernel = torch.stack(kernels)
    spread = torch.stack(spreads).mean().sqrt() / mean.square().mean().sqrt().clamp_min(1e-30)
    if identical:
        ones = torch.ones(len(kernel), len(kernel))
        return Similarity(True, ones, ones, 0.0)
    return Similarity(False, _cosines(gram), _cosines(kernel @ kernel.T), spread.item())


def _cosines(gram: Float[Tensor, "expert expert"]) -> Float[Tensor, "expert expert"]:
    norms = gram.diagonal().clamp_min(1e-30).sqrt()
    return (gram / norms / norms[:, None]).clamp(-1, 1).cpu()
