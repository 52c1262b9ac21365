"""A small sparse model behind a server on a real socket."""

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import uvicorn
from fastapi import FastAPI
from openai import OpenAI
from PIL import Image

from moe_llava.generate.engine import Engine
from moe_llava.model.upcycle import upcycle
from moe_llava.recipe import load_recipe
from moe_llava.serve.api import create_app
from moe_llava.serve.scheduler import Scheduler
from moe_llava.serve.server import Server
from moe_llava.serve.service import Service
from moe_llava.train.build import build_stage
from tests.tiny import Tiny

NAME = "tiny"


@pytest.fixture(scope="session")
def engine(tiny: Tiny) -> Engine:
    """A sparse model whose answers hang on the prompt and go on to their limit."""
    context = {"model.max_length": "600", "model.language.config.max_position_embeddings": "640"}
    model, processor = build_stage(load_recipe(tiny.recipe, context), "align")
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.25)
    sparse = upcycle(model, num_experts=4, top_k=2, noise=0.5).eval()
    sparse.generation_config.eos_token_id = None
    return Engine(sparse, processor)


def new_service(engine: Engine, **limits: int) -> Service:
    return Service(engine, NAME, Scheduler(engine, **limits))


@pytest.fixture(scope="session")
def service(engine: Engine) -> Iterator[Service]:
    service = new_service(engine, max_rows=8, max_waiting=16)
    yield service
    assert service.scheduler.close(timeout=60)


@contextmanager
def running(app: FastAPI, scheduler: Scheduler) -> Iterator[str]:
    """The app on a free port of this machine; its URL."""
    server = Server(app, scheduler, host="127.0.0.1", port=0)
    thread = threading.Thread(target=uvicorn.Server.run, args=(server,), daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=90)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def url(service: Service) -> Iterator[str]:
    with running(create_app(service, max_body_bytes=300_000), service.scheduler) as url:
        yield url


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@contextmanager
def held(scheduler: Scheduler) -> Iterator[Callable[[int], None]]:
    """The scheduler waits before each step until it is let: nothing hangs on how fast anyone is."""
    tickets = threading.Semaphore(0)
    step = scheduler._step

    def ticketed() -> None:
        tickets.acquire()
        step()

    scheduler._step = ticketed
    try:
        yield tickets.release
    finally:
        scheduler._step = step
        tickets.release()


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    """For what must come whatever the machine is busy with; the limit only ends a test that fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.01)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_part(source: Image.Image | bytes | str) -> dict:
    if isinstance(source, Image.Image):
        source = encoded(source)
    if isinstance(source, bytes):
        source = data_url(source)
    return {"type": "image_url", "image_url": {"url": source}}


def asked(text: str, *images: Image.Image | bytes | str) -> list[dict]:
    return [{"role": "user", "content": [*map(image_part, images), {"type": "text", "text": text}]}]
