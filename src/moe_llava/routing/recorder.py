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
    """One forward pass: its real tokens, row after row.

    Attributes:
        batch: number of rows.
        continues: whether the pass goes on where the last one stopped, from a cache.
        row: of the batch, for each token.
        answer: where `labels` were given and supervise the token.
        layers: logits, weights and experts of each sparse layer, padding included, where the routers left them.
        places: of the real tokens among those of `layers`.
    """

    batch: int
    continues: bool
    input_ids: Int[np.ndarray, " token"]
    row: Int[np.ndarray, " token"]
    answer: Bool[np.ndarray, " token"]
    layers: list[tuple[Tensor, Tensor, Tensor]]
    places: Int[np.ndarray, " token"]

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
        ids = input_ids.cpu().numpy()
        places = np.flatnonzero(_real_tokens(ids, kwargs.get("attention_mask")))
        labels = kwargs.get("labels")
        answer = np.zeros(len(places), bool) if labels is None else labels.cpu().numpy().reshape(-1)[places] != -100
        self._receive(
            RoutedPass(
                batch=len(ids),
                continues=self._continues,
                input_ids=ids.reshape(-1)[places],
                row=places // ids.shape[1],
                answer=answer,
                layers=layers,
                places=places,
            )
        )


def _real_tokens(ids: Int[np.ndarray, "batch token"], attention_mask: Tensor | None) -> Bool[np.ndarray, "batch token"]:
    """Where tokens are no padding; after a cache, the mask also covers what was read before."""
    if attention_mask is None:
        return np.ones(ids.shape, dtype=bool)
    if attention_mask.ndim != 2:
        raise ValueError("Tracing needs a mask of (batch, token), to tell padding from tokens.")
    return attention_mask[:, -ids.shape[1] :].cpu().numpy().astype(bool)


@torch.no_grad()
def gather(passes: Sequence[tuple[RoutedPass, Int[np.ndarray, " token"]]]) -> Choices:
    """What was chosen for some tokens (places in its `layers`) of each of several passes, one after the other.

    Many short passes cost little more than one long one.
    """
    columns: tuple[list[Tensor], ...] = ([], [], [], [])
    for layer in range(len(passes[0][0].layers)):
        logits, weights, experts = (
            torch.cat([_pick(done.layers[layer][number], places) for done, places in passes]) for number in range(3)
        )
        probability = logits.softmax(dim=-1)
        values = (experts, weights, router_entropy(probability), router_margin(probability))
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    experts, *others = (torch.stack(column, dim=1) for column in columns)
    return Choices(experts.to(torch.int16).cpu().numpy(), *(other.float().cpu().numpy() for other in others))


def _pick(values: Tensor, places: Int[np.ndarray, " token"]) -> Tensor:
    if len(places) == len(values):
        return values
    return values[torch.from_numpy(places).to(values.device)]
