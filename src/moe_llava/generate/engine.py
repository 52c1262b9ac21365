"""Requests in, answers out. Prompts about one image share its encoding and the cache of their common beginning.

Chat and evaluation run on it. `start` gives the running batch itself, for those who schedule steps on their own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from moe_llava.checkpoint.folder import load_model
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.generate.answer_text import AnswerText
from moe_llava.generate.batch import Batch, Decoding, Observer, Row, Sequences
from moe_llava.generate.image_features import ImageFeatures
from moe_llava.generate.plan import ImageSource, Prefix, Prompt, Wave, plan
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.accounting import account_model
from moe_llava.model.packed import pack_modules, packs

__all__ = ["Decoding", "Engine", "ImageSource", "Request", "place_images"]


@dataclass(frozen=True)
class Request:
    """A conversation that waits for its next answer; each `<image>` in it stands for one of `images`, in order.

    `id` names it to an observer of the engine.
    """

    messages: tuple[dict[str, str], ...]
    images: tuple[ImageSource, ...] = ()
    id: str = ""


def place_images(prompt: str, count: int) -> str:
    """The prompt with a marker for each image: at its `<image>` markers, or all in front, as LLaVA writes it."""
    return prompt if "<image>" in prompt else "<image>\n" * count + prompt


@dataclass
class Engine:
    """Answers requests with one model.

    Attributes:
        cache_bytes: most bytes kept of images seen before.
        batch_bytes: most bytes of keys and values in a batch; by default 1 GiB, on a GPU two fifths of what is free.
        share_prefixes: whether prompts about one image go on from a common cache. Greedy answers do not depend on it.
        observer: is told which prompts are the rows of each pass; while there is one, no prefixes are shared.
    """

    model: MoeLlavaForConditionalGeneration
    processor: MoeLlavaProcessor
    cache_bytes: int = 2**30
    batch_bytes: int | None = None
    share_prefixes: bool = True
    observer: Observer | None = None
    _images: ImageFeatures = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._images = ImageFeatures(self.cache_bytes)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
        quantize: str | None = None,
        pack: bool = False,
    ) -> "Engine":
        """Open a checkpoint by folder or hub id, on a GPU if there is one and no device is named.

        Args:
            pack: on a CPU, lay the weights out for decoding (`moe_llava.model.packed`): quicker, for answers alone.

        Raises:
            ValueError: there is no such checkpoint, or no such way to `quantize` (`int8`, `int4`).
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, processor = load_model(folder, dtype=dtype, quantize=quantize, device=device)
        model.eval()
        if pack and not quantize and packs(model):
            pack_modules(model)
        return cls(model, processor)

    def answer(
        self,
        requests: Sequence[Request],
        decoding: Decoding | None = None,
        *,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Answers in the order of the requests; `progress` is told how many more are done. See `answers`."""
        texts = [""] * len(requests)
        for index, text in self.answers(requests, decoding, batch_size=batch_size):
            texts[index] = text
            if progress:
                progress(1)
        return texts

    def answers(
        self, requests: Sequence[Request], decoding: Decoding | None = None, *, batch_size: int = 64
    ) -> Iterator[tuple[int, str]]:
        """Position of a request and its answer, as each is ready.

        Requests run in batches of similar length, longest first. Greedy answers do not depend on `batch_size`.

        Raises:
            ValueError: a request does not fit: images and `<image>` differ, an unreadable image, too many tokens.
        """
        decoding = decoding or Decoding()
        prompts = [self.prompt(request) for request in requests]
        for wave in self._plan(prompts, batch_size, decoding.max_new_tokens):
            beginnings = self._read_prefixes(wave.prefixes, prompts)
            for members in wave.batches:
                batch = self._go_on(members, prompts, decoding, wave.prefixes, beginnings)
                while batch.rows:
                    for row in batch.step():
                        yield row.index, self.text(row)

    def stream(self, request: Request, decoding: Decoding | None = None) -> Iterator[str]:
        """Pieces of one answer as they are decoded. Closing the iterator stops the model at its next token."""
        row = Row(0, decoding or Decoding())
        batch = self.start([self.prompt(request)], [row])
        text = AnswerText(self.processor.tokenizer)
        while batch.rows:
            batch.step()
            if piece := text.take(row.tokens, ended=row.ended is not None):
                yield piece

    def prompt(self, request: Request) -> Prompt:
        """A request in tokens.

        Raises:
            ValueError: images and `<image>` differ in number, or there are too many tokens.
        """
        encoded = self.processor.encode(list(request.messages), len(request.images), add_generation_prompt=True)
        return Prompt(encoded["input_ids"], request.images, request.id)

    def start(self, prompts: Sequence[Prompt], rows: list[Row]) -> Batch:
        """A batch that has read the prompts and is about to write the first token of each row."""
        if self.observer:
            self.observer.begin(prompts)
        return self._begin(rows, prompts, self._empty(len(rows)), [0] * len(rows))

    def text(self, row: Row) -> str:
        """What a row says."""
        return self.processor.tokenizer.decode(row.tokens, skip_special_tokens=True).strip()

    @property
    def joins(self) -> bool:
        """Whether a running batch can take in others: not where layers keep a running state for keys and values."""
        return not any(DynamicCache(config=self.model.config.text_config).is_linear)

    @property
    def cache_tokens(self) -> int:
        """How many tokens the keys and values of a batch may hold, padding included."""
        return self._batch_limit() // account_model(self.model).cache_bytes_per_token(self.model.dtype.itemsize)

    def _plan(self, prompts: list[Prompt], batch_size: int, max_new_tokens: int) -> Iterator[Wave]:
        layers = DynamicCache(config=self.model.config.text_config)
        longest = max((len(prompt.ids) for prompt in prompts), default=1)
        return plan(
            prompts,
            batch_size=batch_size,
            # Room for the answers too, as far as they are likely to need it.
            max_tokens=self.cache_tokens * longest // (longest + max_new_tokens),
            image_token_id=self.model.config.image_token_id,
            share=self.share_prefixes and self.observer is None and not any(layers.is_linear),
            equal_lengths=any(layers.is_sliding),
        )

    def _batch_limit(self) -> int:
        if self.batch_bytes is not None:
            return self.batch_bytes
        if self.model.device.type == "cuda":
            return torch.cuda.mem_get_info(self.model.device)[0] * 2 // 5
        return 2**30

    def _read_prefixes(self, prefixes: Sequence[Prefix], prompts: list[Prompt]) -> Sequences | None:
        if not prefixes:
            return None
        beginnings = self._empty(len(prefixes))
        parts = [prompts[prefix.prompt].ids[: prefix.length] for prefix in prefixes]
        images = [
            image
            for prefix, ids in zip(prefixes, parts, strict=True)
            for image in prompts[prefix.prompt].images[: self._count_images(ids)]
        ]
        beginnings.read(parts, self._encode(images))
        return beginnings

    def _go_on(
        self,
        members: Sequence[tuple[int, int]],
        prompts: Sequence[Prompt],
        decoding: Decoding,
        prefixes: Sequence[Prefix],
        beginnings: Sequences | None,
    ) -> Batch:
        """A batch of a wave: its rows go on from copies of their beginnings."""
        rows = [Row(index, decoding) for index, _ in members]
        mine = [prompts[index] for index, _ in members]
        if beginnings is None:
            return self.start(mine, rows)
        chosen = [prefix for _, prefix in members]
        return self._begin(rows, mine, beginnings.select(chosen), [prefixes[prefix].length for prefix in chosen])

    def _begin(self, rows: list[Row], prompts: Sequence[Prompt], sequences: Sequences, read: Sequence[int]) -> Batch:
        """Read what is left of the prompts after their first `read` tokens, which `sequences` hold."""
        images = [
            image
            for prompt, length in zip(prompts, read, strict=True)
            for image in prompt.images[self._count_images(prompt.ids[:length]) :]
        ]
        rest = [prompt.ids[length:] for prompt, length in zip(prompts, read, strict=True)]
        logits = sequences.read(rest, self._encode(images))
        stops = self.model.generation_config.eos_token_id
        return Batch(
            rows, sequences, logits, frozenset([stops] if isinstance(stops, int) else stops or ()), self.observer
        )

    def _empty(self, rows: int) -> Sequences:
        config = self.model.config.text_config
        layers = DynamicCache(config=config)
        return Sequences(self.model, rows, layers if any(layers.is_linear) else None)

    def encode_images(self, sources: Sequence[ImageSource]) -> Float[Tensor, "image patch channel"]:
        """The vision tower's patch features, each distinct image encoded once while it is remembered."""
        return torch.stack(self._images.encode(self.model, self.processor, sources))

    def share_images(self, other: "Engine") -> None:
        """Remember images together with an engine whose vision tower and preparation of pixels are the same."""
        self._images = other._images

    @torch.inference_mode()
    def _encode(self, sources: list[ImageSource]) -> list[Float[Tensor, "token width"]]:
        if not sources:
            return []
        tokens = self.model.get_image_features(image_features=self.encode_images(sources)).pooler_output
        assert tokens is not None
        return list(tokens)

    def _count_images(self, ids: Sequence[int]) -> int:
        per_image = max(1, self.model.config.image_seq_length)
        return sum(token == self.model.config.image_token_id for token in ids) // per_image
