"""The HTTP API: OpenAI's chat completions over one service."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from moe_llava.serve.completion import Writer
from moe_llava.serve.gates import BodyLimit, KeyGate, StatusCount
from moe_llava.serve.scheduler import BusyError, ClosingError
from moe_llava.serve.schema import (
    ChatCompletion,
    ChatRequest,
    ErrorReply,
    Health,
    ImagePart,
    Message,
    ModelCard,
    ModelList,
    TextPart,
    error_body,
)
from moe_llava.serve.service import Answers, Service, Turn

RETRY_AFTER = {"Retry-After": "1"}
EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "a chat.completion.chunk in JSON; at the end [DONE]"}},
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "The request cannot be answered as it stands",
        401: "Wrong or missing key",
        404: "No such model",
        413: "The body is too large",
        422: "The request is not of this form",
        429: "The queue is full",
        500: "The model failed",
        503: "The server is stopping",
    }.items()
}


def create_app(
    service: Service, *, api_key: str | None = None, max_body_bytes: int = 20 * 2**20, hosts: list[str] | None = None
) -> FastAPI:
    """The application.

    Args:
        api_key: asked for as a bearer token under `/v1` and `/metrics`.
        max_body_bytes: of a request.
        hosts: names by which the server may be called, against pages that point a name of theirs at it; None for any.
    """
    app = FastAPI(title="moe-llava", description="A sparse vision-language model, and which experts answered.")
    app.include_router(_router(service))
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(StarletteHTTPException, _refused)
    # The last added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    if api_key is not None:
        app.add_middleware(KeyGate, key=api_key)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_middleware(StatusCount, count=service.metrics.responded)
    return app


def _router(service: Service) -> APIRouter:
    router = APIRouter(route_class=_JsonRoute)
    # The gate is a middleware, in front of any reading; this tells the document of it.
    key = [Depends(HTTPBearer(auto_error=False))]
    refusals: dict[int | str, dict[str, Any]] = {status: REFUSALS[status] for status in (401, 413)}

    @router.get("/health", responses={503: {"model": Health, "description": "The server is stopping"}})
    async def health(response: Response) -> Health:
        """Whether new requests are taken."""
        scheduler = service.scheduler
        response.status_code = 503 if scheduler.closing else 200
        return Health(
            status="stopping" if scheduler.closing else "ok", running=scheduler.running, waiting=scheduler.waiting
        )

    @router.get("/metrics", dependencies=key, response_class=Response, responses=refusals)
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/v1/models", dependencies=key, responses=refusals)
    async def models() -> ModelList:
        """The one model served."""
        return ModelList(
            data=[
                ModelCard(
                    id=service.name,
                    created=service.created,
                    context=service.context,
                    image_tokens=service.image_tokens,
                )
            ]
        )

    @router.post(
        "/v1/chat/completions",
        dependencies=key,
        response_model=ChatCompletion,
        response_model_exclude_none=True,
        responses=REFUSALS | {200: {"content": {"text/event-stream": {"schema": EVENT}}}},
    )
    async def chat_completions(asked: ChatRequest, request: Request) -> Any:
        """Answer a conversation, whole or streamed."""
        answers, writer = await _start(service, asked)
        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            return EventStream(answers, writer.events(answers, with_usage))
        with answers:
            if not await _finished_before_hang_up(writer, answers, request):
                return Response(status_code=499)
        if writer.error is not None:
            raise HTTPException(500, "The model failed on this request; others are served.")
        return writer.whole()

    return router


async def _start(service: Service, asked: ChatRequest) -> tuple[Answers, Writer]:
    """Check a request, decode its images, and put it into the queue."""
    if asked.model is not None and asked.model != service.name:
        raise HTTPException(404, f"There is no model {asked.model!r} here; this server has {service.name!r}.")
    if asked.routing and not service.is_sparse:
        raise HTTPException(400, "The model is dense: it has no routers. Leave `routing` out.")
    try:
        prompt = await service.prompt([_turn(message) for message in asked.messages])
        length = service.new_tokens(prompt, asked.max_completion_tokens or asked.max_tokens)
        decodings = [asked.decoding(length, choice) for choice in range(asked.n)]
        answers = service.ask(prompt, decodings, stop=asked.stops, routing=asked.routing)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    except BusyError:
        raise HTTPException(429, "The queue is full; try again in a moment.", headers=RETRY_AFTER) from None
    except ClosingError:
        raise HTTPException(503, "The server is stopping.", headers=RETRY_AFTER) from None
    name, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    return answers, Writer(service, name, created, len(prompt.ids), asked.n, asked.routing)


def _turn(message: Message) -> Turn:
    """Parts become text with `<image>` where an image stands, as the chat templates put it."""
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Turn(role, message.content)
    text = ""
    for at, part in enumerate(message.content, start=1):
        if isinstance(part, TextPart):
            text += part.text
        else:
            text += "<image>" if at == len(message.content) else "<image>\n"
    return Turn(role, text, tuple(part.image_url.url for part in message.content if isinstance(part, ImagePart)))


async def _finished_before_hang_up(writer: Writer, answers: Answers, request: Request) -> bool:
    """Whether the answers ended while their caller was there to hear them."""
    reading = asyncio.create_task(writer.read(answers))
    watching = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait((reading, watching), return_when=asyncio.FIRST_COMPLETED)
        return reading.done()
    finally:
        reading.cancel()
        watching.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; however it ends, the answers' places are given free."""

    def __init__(self, answers: Answers, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answers = answers

    async def __call__(self, *arguments: Any) -> None:
        with self._answers:
            await super().__call__(*arguments)


class _JsonRequest(Request):
    async def json(self) -> Any:
        """What is no UTF-8, too deep or a number too long for Python is malformed JSON too."""
        try:
            return await super().json()
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise json.JSONDecodeError(type(error).__name__, "", 0) from error


class _JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes):
        message = "Send JSON, and the header Content-Type: application/json."
        return JSONResponse(error_body(message, "invalid_request_error"), 422)
    # Where several forms are allowed, each tells why it is not meant; the one that got furthest was.
    first = max(error.errors(), key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    if first["type"] == "json_invalid":
        message = f"The body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}."
        return JSONResponse(error_body(message, "invalid_request_error"), 422)
    where = ".".join(str(part) for part in first["loc"][1:] if str(part).replace("_", "").isalnum())
    what = first["msg"].removeprefix("Value error, ")
    message = f"{where}: {what}" if where else what
    return JSONResponse(error_body(message, "invalid_request_error", where or None), 422)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    code = {404: "not_found", 429: "rate_limit_exceeded"}.get(error.status_code)
    return JSONResponse(error_body(str(error.detail), kind, code=code), error.status_code, headers=error.headers)
