"""The five-line API: load a model, then chat, stream or answer in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from moe_llava.generate.engine import Decoding, Engine, ImageSource, Request, place_images

if TYPE_CHECKING:
    from moe_llava.routing.trace import Trace

Images = ImageSource | Sequence[ImageSource] | None


def load(
    model: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    quantize: str | None = None,
    pack: bool = False,
) -> "Assistant":
    """Open a checkpoint by its path or hub id.

    What MoE-LLaVA and LLaVA-1.5 published is converted once, into the cache.

    Args:
        device: by default a GPU if there is one.
        dtype: by default the one in which the weights are stored.
        quantize: `int8` or `int4`: weights, the experts' too, take 8 or 4 bits.
        pack: on a CPU, lay the weights out for decoding: quicker, but the model can then only answer.

    Raises:
        ValueError: there is no such checkpoint; off line, the sentence says what to fetch.
    """
    return Assistant(Engine.load(model, device=device, dtype=dtype, quantize=quantize, pack=pack))


@dataclass
class Assistant:
    """A model that answers. `engine` holds the model and the processor."""

    engine: Engine

    def chat(
        self,
        prompt: str,
        images: Images = None,
        *,
        history: Sequence[dict[str, str]] = (),
        decoding: Decoding | None = None,
    ) -> str:
        """The answer to one prompt, about `images` if there are any (path or PIL image, one or several)."""
        return self.batch([(prompt, images)], history=history, decoding=decoding)[0]

    def stream(
        self,
        prompt: str,
        images: Images = None,
        *,
        history: Sequence[dict[str, str]] = (),
        decoding: Decoding | None = None,
    ) -> Iterator[str]:
        """The same, piece by piece."""
        return self.engine.stream(_request(prompt, images, history), decoding)

    def batch(
        self,
        prompts: Sequence[tuple[str, Images]],
        *,
        history: Sequence[dict[str, str]] = (),
        decoding: Decoding | None = None,
        batch_size: int = 64,
    ) -> list[str]:
        """Answers to many prompts, in order."""
        requests = [_request(prompt, images, history) for prompt, images in prompts]
        return self.engine.answer(requests, decoding, batch_size=batch_size)

    def trace(self, path: str | Path | None = None) -> "Trace":
        """Record who answers: `with vlm.trace() as routing: vlm.chat(...)`, then `routing.report("routing.html")`.

        Args:
            path: where to keep the routes (Parquet); without, they go with the returned object.

        Raises:
            ValueError: the model is dense, or being traced already; pyarrow is not installed.
        """
        from moe_llava.routing.trace import Trace

        return Trace(self.engine, path)


def _request(prompt: str, images: Images, history: Sequence[dict[str, str]]) -> Request:
    given = () if images is None else tuple(images) if isinstance(images, (list, tuple)) else (images,)
    turn = {"role": "user", "content": place_images(prompt, len(given))}
    return Request(messages=(*history, turn), images=given)
