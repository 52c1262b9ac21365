"""Which experts the tokens of a running batch take: what routers answered in the last pass, row by row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.config import moe_layers
from moe_llava.model.decoder import decoder_layers
from moe_llava.model.vision import grid_size


@dataclass(frozen=True)
class TokenRoute:
    """Experts and weights of one token: for each sparse layer the `top_k` chosen, the heaviest first."""

    token_id: int
    experts: list[list[int]]
    weights: list[list[float]]


@dataclass(frozen=True)
class ImageRoutes:
    """The same for each patch of an image, in reading order: `experts[patch][layer]`.

    Where the patches fill no grid, `rows` and `columns` are None.
    """

    rows: int | None
    columns: int | None
    experts: list[list[list[int]]]
    weights: list[list[list[float]]]


class RouterTap:
    """Hears a model's routers while it is told to listen.

    Attributes:
        layers: indices of the sparse layers; none in a dense model.
    """

    def __init__(self, model: MoeLlavaForConditionalGeneration) -> None:
        self.layers = moe_layers(model.config.text_config)
        self._image_token_id = model.config.image_token_id
        self._image_length = model.config.image_seq_length
        self._listens = False
        self._heard: list[tuple[Int[Tensor, "token k"], Float[Tensor, "token k"]]] = []
        layers = decoder_layers(model.model.language_model) if self.layers else []
        for index in self.layers:
            layers[index].mlp.gate.register_forward_hook(self._hear)

    def _hear(self, router: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        if self._listens:
            self._heard.append((output[2], output[1]))

    @contextmanager
    def listen(self, on: bool) -> Iterator[None]:
        """Forget the last pass; keep what routers answer inside the block, if `on`."""
        self._heard = []
        self._listens = on
        try:
            yield
        finally:
            self._listens = False

    def token(self, row: int, token_id: int) -> TokenRoute:
        """Of a pass over one token a row."""
        experts, weights = self._at(torch.tensor([row]))
        return TokenRoute(token_id, experts[0], weights[0])

    def images(self, row: int, prompts: Sequence[list[int]]) -> tuple[ImageRoutes, ...]:
        """Of a pass over whole prompts, padded in front: the images of one."""
        longest = max(map(len, prompts))
        ids = torch.tensor(prompts[row])
        places = (ids == self._image_token_id).nonzero()[:, 0] + row * longest + longest - len(ids)
        return tuple(self._image(image) for image in places.split(max(1, self._image_length)) if len(image))

    def _image(self, places: Int[Tensor, " patch"]) -> ImageRoutes:
        experts, weights = self._at(places)
        try:
            rows, columns = grid_size(len(places))
        except ValueError:
            return ImageRoutes(None, None, experts, weights)
        return ImageRoutes(rows, columns, experts, weights)

    def _at(self, places: Int[Tensor, " token"]) -> tuple[list[list[list[int]]], list[list[list[float]]]]:
        experts = torch.stack([layer[0][places.to(layer[0].device)] for layer in self._heard], dim=1)
        weights = torch.stack([layer[1][places.to(layer[1].device)] for layer in self._heard], dim=1)
        return experts.tolist(), [[_rounded(layer) for layer in token] for token in weights.tolist()]


def _rounded(weights: list[float]) -> list[float]:
    return [round(weight, 4) for weight in weights]
