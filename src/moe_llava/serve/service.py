"""One model that answers many: what the API and the page share."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self
from weakref import WeakValueDictionary

import anyio
from PIL import Image

from moe_llava.generate.engine import Decoding, Engine, Request
from moe_llava.generate.plan import Prompt
from moe_llava.serve.fetch import Fetcher
from moe_llava.serve.images import ImageRefusedError, decode_data_url, decode_image
from moe_llava.serve.metrics import Metrics
from moe_llava.serve.scheduler import BusyError, Job, Piece, Scheduler

HELD_BYTES = 2**31  # of decoded pictures whose answers wait or run; a small file can become many megabytes


@dataclass(frozen=True)
class Turn:
    """One message: its text with an `<image>` for each of its images; images are URLs, file contents or pictures."""

    role: str
    content: str
    images: tuple[str | bytes | Image.Image, ...] = ()


class Answers:
    """Answers to one request as they grow: an asynchronous iterator of `(choice, piece)`.

    Closing it, or leaving its `with` block, gives the places of unfinished answers free.
    """

    def __init__(self, choices: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._open = choices
        self.jobs: list[Job] = []

    def notify(self, choice: int, piece: Piece) -> None:
        """From the scheduler's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, (choice, piece))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        while self._open:
            choice, piece = await self._pieces.get()
            self._open -= bool(piece.finish or piece.error)
            yield choice, piece

    def close(self) -> None:
        for job in self.jobs:
            job.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Service:
    """A model, the thread that runs it, and the rules by which strangers may use it.

    Attributes:
        name: what the model is called in the API.
        fetch: reads images by http(s); None refuses them.
        default_new_tokens: of an answer whose length nobody gave.
    """

    engine: Engine
    name: str
    scheduler: Scheduler
    fetch: Fetcher | None = None
    default_new_tokens: int = 512
    metrics: Metrics = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        config = self.engine.model.config
        self.created = int(time.time())
        self.metrics = Metrics(self.scheduler)
        self.image_tokens = config.image_seq_length if config.vision_config is not None else 0
        limits = (self.engine.processor.model_max_length, getattr(config.text_config, "max_position_embeddings", None))
        self.context = min((limit for limit in limits if limit), default=2**20)
        self._longest_token = max(map(len, self.engine.processor.tokenizer.get_vocab()), default=1)
        # Few at a time: a decoded picture takes up to 150 MB.
        self._decoders = anyio.CapacityLimiter(2)
        self._held: WeakValueDictionary[int, Image.Image] = WeakValueDictionary()
        self._tokenizing = threading.Lock()

    @property
    def is_sparse(self) -> bool:
        return bool(self.scheduler.layers)

    def token_text(self, token_id: int) -> str:
        """What a token adds inside a text: alone, a token of a sentence piece model would lose the blank before it."""
        tokenizer = self.engine.processor.tokenizer
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        return str(tokenizer.decode([*anchor, token_id]))[len(str(tokenizer.decode(anchor))) :]

    async def prompt(self, turns: Sequence[Turn]) -> Prompt:
        """A conversation in tokens, its images decoded. Tokens are counted first, so that no image is read in vain.

        Raises:
            ValueError: a sentence for its sender.
            BusyError: the pictures of others leave no room for these.
        """
        sources = [image for turn in turns for image in turn.images]
        ids = await anyio.to_thread.run_sync(self._tokenize, turns, len(sources))
        images = [await self.image(source) for source in sources]
        return Prompt(ids, tuple(images))

    def _tokenize(self, turns: Sequence[Turn], num_images: int) -> list[int]:
        characters = sum(len(turn.content) for turn in turns)
        if characters > self.context * self._longest_token:
            raise ValueError(f"{characters:,} characters of text cannot fit the context of {self.context:,} tokens.")
        messages = tuple({"role": turn.role, "content": turn.content} for turn in turns)
        with self._tokenizing:
            ids = self.engine.prompt(Request(messages, ("",) * num_images)).ids
        if len(ids) >= self.context:
            of_images = f", {num_images} x {self.image_tokens} of them of images" if num_images else ""
            raise ValueError(
                f"The conversation has {len(ids)} tokens{of_images}; the context of {self.context} leaves no room to "
                "answer. Shorten it."
            )
        return ids

    async def image(self, source: str | bytes | Image.Image) -> Image.Image:
        """A picture from a URL or the bytes of a file.

        Raises:
            ImageRefusedError: it is not taken.
            BusyError: there is no room for it.
        """
        if isinstance(source, Image.Image):
            return source
        if isinstance(source, str) and not source.startswith("data:"):
            if self.fetch is None:
                raise ImageRefusedError("Images are taken as data: URLs only; this server reads no others.")
            source = await self.fetch(source)
        picture = await anyio.to_thread.run_sync(_decode, source, limiter=self._decoders)
        self._held[id(picture)] = picture
        if sum(3 * held.width * held.height for held in self._held.values()) > HELD_BYTES:
            raise BusyError
        return picture

    def new_tokens(self, prompt: Prompt, asked: int | None) -> int:
        """How long an answer may be.

        Raises:
            ValueError: more is asked for than the context has.
        """
        room = self.context - len(prompt.ids)
        if asked is not None and asked > room:
            raise ValueError(
                f"The conversation has {len(prompt.ids)} tokens and {asked} more are asked for; the context has "
                f"{self.context}: ask for at most {room}."
            )
        return min(asked or self.default_new_tokens, room)

    def ask(
        self, prompt: Prompt, decodings: Sequence[Decoding], *, stop: tuple[str, ...] = (), routing: bool = False
    ) -> Answers:
        """One answer for each decoding.

        Raises:
            ValueError: more than this server ever takes.
            BusyError, ClosingError: see `Scheduler.submit`.
        """
        if len(decodings) > self.scheduler.max_answers:
            raise ValueError(f"{len(decodings)} answers are asked for; this server takes {self.scheduler.max_answers}.")
        answers = Answers(len(decodings))
        watch = self.metrics.watch(len(prompt.ids))
        for choice, decoding in enumerate(decodings):
            notify = partial(_notify_all, (partial(answers.notify, choice), watch()))
            answers.jobs.append(Job(prompt, decoding, notify, stop=stop, routing=routing))
        self.scheduler.submit(answers.jobs)
        return answers


def _notify_all(listeners: Sequence, piece: Piece) -> None:
    for listener in listeners:
        listener(piece)


def _decode(source: str | bytes) -> Image.Image:
    return decode_image(decode_data_url(source) if isinstance(source, str) else source)
