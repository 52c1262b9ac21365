"""Requests in, answers out: batches by length, each image encoded once. Chat and evaluation run on it."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import TextIteratorStreamer

from moe_llava.checkpoint.folder import load_model
from moe_llava.data.images import load_image
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.model import MoeLlavaForConditionalGeneration

ImageSource = str | Path | Image.Image


@dataclass(frozen=True)
class Request:
    """A conversation that waits for its next answer; each `<image>` in it stands for one of `images`, in order."""

    messages: tuple[dict[str, str], ...]
    images: tuple[ImageSource, ...] = ()


def place_images(prompt: str, count: int) -> str:
    """The prompt with a marker for each image: at its `<image>` markers, or all in front, as LLaVA writes it."""
    return prompt if "<image>" in prompt else "<image>\n" * count + prompt


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: greedy at temperature 0."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `generate`."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }


@dataclass
class Engine:
    """Answers requests with one model. `cache_bytes` bounds the patch features kept of images seen before."""

    model: MoeLlavaForConditionalGeneration
    processor: MoeLlavaProcessor
    cache_bytes: int = 2**30
    _features: OrderedDict[str, Tensor] = field(default_factory=OrderedDict, repr=False)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | str = "auto"
    ) -> "Engine":
        """Open a checkpoint, on a GPU if there is one and no device is named.

        Raises:
            ValueError: the folder holds no checkpoint of this library.
        """
        model, processor = load_model(folder, dtype=dtype)
        model.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))  # type: ignore[arg-type]
        return cls(model.eval(), processor)

    @torch.inference_mode()
    def answer(
        self,
        requests: Sequence[Request],
        decoding: Decoding | None = None,
        *,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Answers in the order of the requests.

        Requests run in batches of similar length, longest first. Greedy answers do not depend on `batch_size`.
        `progress` is told how many more are done.

        Raises:
            ValueError: a request does not fit: images and `<image>` differ, an unreadable image, too many tokens.
        """
        decoding = decoding or Decoding()
        prompts = [self._prompt(request) for request in requests]
        order = sorted(range(len(requests)), key=lambda index: -len(prompts[index]))
        answers = [""] * len(requests)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = self._inputs([prompts[index] for index in batch], [requests[index].images for index in batch])
            output = self.model.generate(**inputs, **self._arguments(decoding))
            texts = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                answers[index] = text.strip()
            if progress:
                progress(len(batch))
        return answers

    def stream(self, request: Request, decoding: Decoding | None = None) -> Iterator[str]:
        """Pieces of one answer as they are decoded. Closing the iterator stops the model at its next token."""
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = _Stop()
        arguments = self._arguments(decoding or Decoding())
        with torch.inference_mode():
            inputs = self._inputs([self._prompt(request)], [request.images])
        errors: list[BaseException] = []

        def run() -> None:
            try:
                with torch.inference_mode():
                    self.model.generate(**inputs, **arguments, streamer=streamer, stopping_criteria=[stop])
            except BaseException as error:  # noqa: BLE001 (handed to the reader's thread)
                errors.append(error)
                streamer.end()

        worker = Thread(target=run, daemon=True)
        worker.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            stop.now = True
            worker.join()
        if errors:
            raise errors[0]

    def share_images(self, other: "Engine") -> None:
        """Keep patch features together with an engine whose vision tower is the same."""
        self._features = other._features

    def _arguments(self, decoding: Decoding) -> dict[str, Any]:
        """Keyword arguments of `generate`; a model cannot utter an image."""
        return decoding.arguments() | {"suppress_tokens": [self.model.config.image_token_id]}

    def _prompt(self, request: Request) -> list[int]:
        return self.processor.encode(list(request.messages), len(request.images), add_generation_prompt=True)[
            "input_ids"
        ]

    def _inputs(self, prompts: list[list[int]], images: list[tuple[ImageSource, ...]]) -> dict[str, Any]:
        """Left-padded inputs of `generate`; identical images share their features."""
        length = max(map(len, prompts))
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.full((len(prompts), length), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = 1
        inputs: dict[str, Any] = {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}
        if sources := [image for group in images for image in group]:
            features = self.encode_images(sources)
            inputs["mm_encoder_outputs"] = {"image": self.model.get_image_features(image_features=features)}
        return inputs

    def encode_images(self, sources: Sequence[ImageSource]) -> Float[Tensor, "image patch channel"]:
        """Patch features of images, in order; those seen lately are not computed again."""
        keys = [_image_key(source) for source in sources]
        known = {key: self._features[key] for key in keys if key in self._features}
        new = {key: source for key, source in zip(keys, sources, strict=True) if key not in known}
        if new:
            pixels = self.processor.image_processor(
                [load_image(source) for source in new.values()], return_tensors="pt"
            )
            encoded = self.model.model.get_patch_features(
                pixels["pixel_values"].to(self.model.device, self.model.dtype)
            )
            known |= dict(zip(new, encoded, strict=True))
        for key in known:
            self._features[key] = known[key]
            self._features.move_to_end(key)
        one = next(iter(known.values())).nbytes
        while len(self._features) * one > self.cache_bytes:
            self._features.popitem(last=False)
        return torch.stack([known[key] for key in keys])


class _Stop:
    """A stopping criterion that the reader sets."""

    now = False

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.now, dtype=torch.bool, device=input_ids.device)


def _image_key(source: ImageSource) -> str:
    """What identifies an image: its bytes."""
    if isinstance(source, Image.Image):
        return hashlib.sha256(f"{source.mode}{source.size}".encode() + source.tobytes()).hexdigest()
    try:
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"Cannot read the image {source}: {error.strerror}.") from error
