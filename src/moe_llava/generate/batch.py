"""Rows that decode together, a token each step: rows leave when they end, other batches may join."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import TemperatureLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from moe_llava.generate.cache import GrowingCache
from moe_llava.generate.plan import Prompt
from moe_llava.model import MoeLlavaForConditionalGeneration


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: greedy at temperature 0. With a seed, a row draws alike whoever else is in its batch."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(eq=False)
class Row:
    """One answer being written.

    Attributes:
        index: the caller's name for it.
        tokens: what was written so far, a token that ended it not included.
        ended: why it ended, by a stop token or by its length; None while it goes on.
        generator: what it draws from; by default torch's own.
    """

    index: int
    decoding: Decoding
    tokens: list[int] = field(default_factory=list)
    ended: Literal["stop", "length"] | None = None
    generator: torch.Generator | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        if self.decoding.seed is not None:
            # On the CPU, so that a seed means the same on every device.
            self.generator = torch.Generator().manual_seed(self.decoding.seed)


class Sequences:
    """What a model has read: keys and values, and which of them are real.

    Rows are padded in front of each piece that was read, so `mask` `(row, token)` may have gaps; positions count real
    tokens only. All layers keep everything they read: a family's sliding windows are left to its masks.
    """

    def __init__(self, model: MoeLlavaForConditionalGeneration, rows: int, cache: Cache | None = None) -> None:
        self.model = model
        self.cache = GrowingCache() if cache is None else cache
        self.mask = torch.zeros(rows, 0, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> "Sequences":
        """Copies of some rows, in this order, as often as each is named."""
        chosen = copy.copy(self)
        index = torch.tensor(rows, device=self.mask.device)
        chosen.mask = self.mask[index]
        chosen.cache = copy.copy(self.cache)
        chosen.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        if len(self.mask) > 1:
            chosen.cache.batch_select_indices(index)
        else:  # views: the copy is made when the rows read on
            for layer in chosen.cache.layers:
                for name in ("keys", "values"):
                    setattr(layer, name, getattr(layer, name).expand(len(rows), -1, -1, -1))
        return chosen

    def trim(self) -> None:
        """Forget the padding in front of all rows, which is left when the longest have gone."""
        start = int(self.mask.any(dim=0).int().argmax()) if self.mask.numel() else 0
        if start and all(hasattr(layer, "keys") for layer in self.cache.layers):
            self.mask = self.mask[:, start:]
            for layer in self.cache.layers:
                for name in ("keys", "values"):
                    setattr(layer, name, getattr(layer, name)[:, :, start:])

    @torch.inference_mode()
    def read(
        self, ids: Sequence[Sequence[int]], images: Sequence[Float[Tensor, "patch width"]] = ()
    ) -> Float[Tensor, "row vocabulary"]:
        """Read on in every row and return the logits of what follows; `images` are those of all rows, in order."""
        length = max(map(len, ids))
        padded = torch.zeros(len(ids), length, dtype=torch.long)
        real = torch.zeros_like(padded)
        for row, tokens in enumerate(ids):
            padded[row, length - len(tokens) :] = torch.tensor(tokens)
            real[row, length - len(tokens) :] = 1
        device = self.mask.device
        self.mask = torch.cat([self.mask, real.to(device)], dim=1)
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
        outputs = {"image": BaseModelOutputWithPooling(pooler_output=list(images))} if images else None  # type: ignore[arg-type]
        output = self.model(
            input_ids=padded.to(device),
            attention_mask=self.mask,
            position_ids=positions,
            cache=self.cache,
            use_cache=True,
            mm_encoder_outputs=outputs,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    @torch.inference_mode()
    def extend(self, other: "Sequences") -> None:
        """Add the rows of `other`; the shorter ones get padding in front."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        gaps = [length - part.mask.shape[1] for part in (self, other)]
        self.mask = torch.cat([F.pad(part.mask, (gap, 0)) for part, gap in zip((self, other), gaps, strict=True)])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            for name in ("keys", "values"):
                both = [F.pad(getattr(layer, name), (0, 0, gap, 0)) for layer, gap in zip((mine, theirs), gaps)]  # noqa: B905
                setattr(mine, name, torch.cat(both))


@runtime_checkable
class Observer(Protocol):
    """Is told which prompts are the rows of the passes to come."""

    def begin(self, prompts: Sequence[Prompt]) -> None:
        """The next pass reads these prompts, one a row."""

    def keep(self, rows: Sequence[int]) -> None:
        """The passes to come go on with these rows of the last one, in this order."""


class Batch:
    """Answers in progress.

    Args:
        rows: one for each sequence.
        sequences: the prompts, read to their ends.
        logits: `(row, vocabulary)`, of each answer's first token.
        stops: tokens that end an answer.
        observer: hears of rows that leave.
    """

    def __init__(
        self,
        rows: list[Row],
        sequences: Sequences,
        logits: Float[Tensor, "row vocabulary"],
        stops: frozenset[int],
        observer: Observer | None = None,
    ) -> None:
        self.rows = rows
        self._sequences = sequences
        self._logits = logits
        self._stops = stops
        self._observer = observer

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Write one token in each row; rows that end leave the batch and are returned."""
        chosen = choose_tokens(self._forbid_images(), self.rows).tolist()
        for row, token in zip(self.rows, chosen, strict=True):
            if token in self._stops:
                row.ended = "stop"
                continue
            row.tokens.append(token)
            if len(row.tokens) >= row.decoding.max_new_tokens:
                row.ended = "length"
        ended = [row for row in self.rows if row.ended]
        self._keep([at for at, row in enumerate(self.rows) if not row.ended])
        if self.rows:
            self._logits = self._sequences.read([row.tokens[-1:] for row in self.rows])
        return ended

    @torch.inference_mode()
    def join(self, other: "Batch") -> None:
        """Take in the rows of `other`, which was started with the same model; `other` is of no use afterwards."""
        assert self._observer is None, "rows that join cannot be observed"
        self.rows += other.rows
        self._sequences.extend(other._sequences)
        self._logits = torch.cat([self._logits, other._logits])

    @torch.inference_mode()
    def leave(self, row: Row) -> None:
        """Let a row go before its end."""
        self._keep([at for at, one in enumerate(self.rows) if one is not row])

    def _keep(self, positions: list[int]) -> None:
        if len(positions) == len(self.rows):
            return
        self.rows = [self.rows[at] for at in positions]
        if self.rows:
            self._sequences = self._sequences.select(positions)
            self._sequences.trim()
            self._logits = self._logits[positions]
            if self._observer:
                self._observer.keep(positions)

    def _forbid_images(self) -> Float[Tensor, "row vocabulary"]:
        """A model cannot utter an image; its placeholder may lie outside the vocabulary anyway."""
        image = self._sequences.model.config.image_token_id
        if image is not None and image < self._logits.shape[-1]:
            self._logits[:, image] = -torch.inf
        return self._logits


def choose_tokens(logits: Float[Tensor, "row vocabulary"], rows: Sequence[Row]) -> Int[Tensor, "row"]:
    """The most likely token of each row, or one drawn at the row's temperature from its top-p nucleus."""
    tokens = logits.argmax(dim=-1)
    for at, row in enumerate(rows):
        if row.decoding.temperature > 0:
            scores = TemperatureLogitsWarper(row.decoding.temperature)(None, logits[at : at + 1].float())
            if row.decoding.top_p < 1:
                scores = TopPLogitsWarper(row.decoding.top_p)(None, scores)
            probabilities = scores.softmax(dim=-1)
            if row.generator is not None:
                probabilities = probabilities.cpu()
            tokens[at] = torch.multinomial(probabilities, 1, generator=row.generator)[0, 0]
    return tokens
