"""Forward hooks: what the routers of a model decide, pass by pass, as arrays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.balance import router_entropy, router_margin
from moe_llava.model.config import moe_layers
from moe_llava.model.decoder import decoder_layers
from moe_llava.model.router import TopKRouter


@dataclass(frozen=True)
class Choices:
    """What the routers of every sparse layer chose for some tokens.

    `entropy` (nats) is of a router's distribution over experts, `margin` the distance of its two largest probabilities.
    """

    experts: Int[np.ndarray, "token layer k"]
    weights: Float[np.ndarray, "token layer k"]
    entropy: Float[np.ndarray, "token layer"]
    margin: Float[np.ndarray, "token layer"]

    def take(self, tokens: Int[np.ndarray, " kept"]) -> "Choices":
        """Those of some of the tokens."""
        return Choices(self.experts[tokens], self.weights[tokens], self.entropy[tokens], self.margin[tokens])


@dataclass(frozen=True)
class RoutedPass:
    """One forward pass: its real tokens, row after row.

    Attributes:
        batch: number of rows.
        continues: whether the pass goes on where the last one stopped, from a cache.
        row: of the batch, for each token.
        answer: where `labels` were given and supervise the token.
    """

    batch: int
    continues: bool
    input_ids: Int[np.ndarray, " token"]
    row: Int[np.ndarray, " token"]
    answer: Bool[np.ndarray, " token"]
    choices: Choices


class RouteRecorder:
    """Hands every forward pass of a sparse model on, between `start` and `stop`.

    Routers are read as they answered, so what is recorded is what was used, under any intervention on them. Passes of
    the backward's recomputation (gradient checkpointing) are not recorded again.

    Raises:
        ValueError: the model is dense.
    """

    def __init__(self, model: MoeLlavaForConditionalGeneration) -> None:
        if not moe_layers(model.config.text_config):
            raise ValueError("The model is dense: it has no routers to trace. Give the folder of a sparse stage.")
        self._model = model
        self._receive: Callable[[RoutedPass], None] | None = None
        self._layers: list[tuple[Tensor, ...]] | None = None
        self._continues = False
        self._handles: list[RemovableHandle] = []

    def start(self, receive: Callable[[RoutedPass], None]) -> None:
        self._receive = receive
        layers = decoder_layers(self._model.model.language_model)
        routers: list[TopKRouter] = [layers[index].mlp.gate for index in moe_layers(self._model.config.text_config)]
        self._handles = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            *(router.register_forward_hook(self._routed) for router in routers),
            self._model.register_forward_hook(self._after, with_kwargs=True),
        ]

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._receive = None

    def _before(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("cache")
        self._continues = cache is not None and int(cache.get_seq_length()) > 0
        self._layers = []

    @torch.no_grad()
    def _routed(self, router: Any, args: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        if self._layers is not None:
            logits, weights, experts = output
            probability = logits.detach().softmax(dim=-1)
            self._layers.append((experts, weights.detach(), router_entropy(probability), router_margin(probability)))

    @torch.no_grad()
    def _after(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        layers, self._layers = self._layers, None
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None:
            raise ValueError("A pass with inputs_embeds has no tokens to name: trace passes that give input_ids.")
        assert layers is not None and self._receive is not None
        real = _real_tokens(input_ids, kwargs.get("attention_mask"))
        labels = kwargs.get("labels")
        answer = np.zeros(int(real.sum()), dtype=bool) if labels is None else (labels[real] != -100).cpu().numpy()
        self._receive(
            RoutedPass(
                batch=len(input_ids),
                continues=self._continues,
                input_ids=input_ids[real].cpu().numpy(),
                row=real.nonzero()[:, 0].cpu().numpy(),
                answer=answer,
                choices=_gather(layers, None if bool(real.all()) else real.flatten()),
            )
        )


def _real_tokens(input_ids: Int[Tensor, "batch token"], attention_mask: Tensor | None) -> Bool[Tensor, "batch token"]:
    """Where tokens are no padding; after a cache, the mask also covers what was read before."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.ndim != 2:
        raise ValueError("Tracing needs a mask of (batch, token), to tell padding from tokens.")
    return attention_mask[:, -input_ids.shape[1] :].bool()


def _gather(layers: list[tuple[Tensor, ...]], real: Bool[Tensor, " all_tokens"] | None) -> Choices:
    """The layers' tensors in one array each, token first, without padding; one copy from the device an array."""

    def stack(number: int, dtype: torch.dtype) -> np.ndarray:
        tensor = torch.stack([layer[number] for layer in layers], dim=1)
        return (tensor if real is None else tensor[real]).to(dtype).cpu().numpy()

    return Choices(
        experts=stack(0, torch.int16),
        weights=stack(1, torch.float32),
        entropy=stack(2, torch.float32),
        margin=stack(3, torch.float32),
    )
