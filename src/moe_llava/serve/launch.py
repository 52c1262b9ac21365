"""From a checkpoint to a server."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from moe_llava.generate.engine import Engine
from moe_llava.serve.api import create_app
from moe_llava.serve.fetch import Fetcher
from moe_llava.serve.scheduler import Scheduler
from moe_llava.serve.server import LOOPBACK_NAMES, is_loopback, serve
from moe_llava.serve.service import Service


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    model: str
    ui: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    model_name: str | None = None
    device: str | None = None
    quantize: str | None = None
    allow_remote_images: bool = False
    max_batch: int = 32
    max_queue: int = 64
    max_body_bytes: int = 20 * 2**20


def launch(options: Options, *, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Load a model and serve it until a signal.

    Raises:
        ValueError: the options make no server.
    """
    _check(options)
    if not is_loopback(options.host) and options.api_key is None:
        warn(f"{options.host} is open to other machines and there is no --api-key: whoever reaches it may use it.")
    service = build_service(options)
    app = build_app(service, options)
    where = f"[{options.host}]" if ":" in options.host else options.host
    say(f"{service.name} at http://{where}:{options.port}/v1" + (f" and http://{where}:{options.port}/" * options.ui))
    serve(app, service.scheduler, host=options.host, port=options.port)


def build_service(options: Options) -> Service:
    engine = Engine.load(options.model, device=options.device, quantize=options.quantize, pack=True)
    scheduler = Scheduler(engine, max_rows=options.max_batch, max_waiting=options.max_queue)
    fetch = Fetcher(options.max_body_bytes) if options.allow_remote_images else None
    return Service(engine, options.model_name or Path(options.model).resolve().name, scheduler, fetch)


def build_app(service: Service, options: Options) -> FastAPI:
    """The API, and the page if wanted."""
    closed = is_loopback(options.host) and options.api_key is None
    app = create_app(
        service,
        api_key=options.api_key,
        max_body_bytes=options.max_body_bytes,
        hosts=LOOPBACK_NAMES if closed else None,
    )
    if options.ui:
        from moe_llava.serve.web import mount_page

        mount_page(app, service, api_key=options.api_key, max_file_bytes=options.max_body_bytes)
    return app


def _check(options: Options) -> None:
    if options.max_batch < 1 or options.max_queue < 0 or options.max_body_bytes < 1:
        raise ValueError("--max-batch and --max-body-mb are at least 1, --max-queue at least 0.")
    if not 0 < options.port < 2**16:
        raise ValueError(f"--port {options.port} is none; choose one from 1 to 65535.")
    if options.api_key is not None and not options.api_key.strip():
        raise ValueError("--api-key is empty; give a key, or leave it out.")
