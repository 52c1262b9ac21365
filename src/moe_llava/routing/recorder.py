"""Forward hooks: what the routers of a model decide, pass by pass, as arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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

    @classmethod
    def join(cls, pieces: Sequence["Choices"]) -> "Choices":
        """Several after one another."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names})


@dataclass(frozen=True)
class RoutedPass:
    """One forward pass, on its device and with its padding, so that it costs next to nothing to keep.

    Attributes:
        continues: whether the pass goes on where the last one stopped, from a cache.
        real: where tokens are no padding.
        answer: where `labels` supervise tokens, if they were given.
        layers: logits, weights and experts of each sparse layer, where the routers left them.
    """

    continues: bool
    input_ids: Int[Tensor, "batch token"]
    real: Bool[Tensor, "batch token"]
    answer: Bool[Tensor, "batch token"] | None
    layers: list[tuple[Tensor, Tensor, Tensor]]

    @property
    def numbers(self) -> int:
        """How many logits it holds."""
        return sum(logits.numel() for logits, _, _ in self.layers)


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
        self._layers: list[tuple[Tensor, Tensor, Tensor]] | None = None
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

    def _routed(self, router: Any, args: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        if self._layers is not None:
            logits, weights, experts = output
            self._layers.append((logits.detach(), weights.detach(), experts))

    def _after(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        layers, self._layers = self._layers, None
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None:
            raise ValueError("A pass with inputs_embeds has no tokens to name: trace passes that give input_ids.")
        assert layers is not None and self._receive is not None
        labels = kwargs.get("labels")
        self._receive(
            RoutedPass(
                continues=self._continues,
                input_ids=input_ids.clone(),  # the caller may write over its own
                real=_real_tokens(input_ids, kwargs.get("attention_mask")),
                answer=None if labels is None else labels != -100,
                layers=layers,
            )
        )


def _real_tokens(input_ids: Int[Tensor, "batch token"], attention_mask: Tensor | None) -> Bool[Tensor, "batch token"]:
    """Where tokens are no padding; after a cache, the mask also covers what was read before."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.ndim != 2:
        raise ValueError("Tracing needs a mask of (batch, token), to tell padding from tokens.")
    return attention_mask[:, -input_ids.shape[1] :] != 0


@torch.no_grad()
def gather(passes: Sequence[RoutedPass], places: Int[np.ndarray, " token"]) -> Choices:
    """What was chosen for some tokens, by their places among those of all passes, one after the other."""
    columns: tuple[list[Tensor], ...] = ([], [], [], [])
    chosen = torch.from_numpy(places).to(passes[0].input_ids.device)
    for layer in range(len(passes[0].layers)):
        logits, weights, experts = (
            torch.cat([done.layers[layer][number] for done in passes])[chosen] for number in range(3)
        )
        probability = logits.softmax(dim=-1)
        values = (experts, weights, router_entropy(probability), router_margin(probability))
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    experts, *others = (torch.stack(column, dim=1) for column in columns)
    return Choices(experts.to(torch.int16).cpu().numpy(), *(other.float().cpu().numpy() for other in others))
