"""In front of the application: who may come in, with how much, and how they left. Plain ASGI, so streams pass."""

import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moe_llava.serve.schema import error_body

GUARDED = ("/v1", "/metrics")


class KeyGate:
    """Asks for a bearer token where the API is."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(GUARDED) and not self._knows(scope):
            body = error_body("Send the server's key: Authorization: Bearer KEY.", "authentication_error")
            await JSONResponse(body, 401, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(token.strip().encode("latin-1"), self._key)


class BodyLimit:
    """Refuses a body that says it is too large, and stops reading one that turns out to be.

    It holds for the API; uploads to the page have the page's own limit.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self._app(scope, receive, send)
            return
        if _declared_length(scope) > self._max:
            await self._refuse(scope, receive, send)
            return
        read, began = 0, False

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max:
                raise _TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, limited, noted)
        except _TooLargeError:
            if not began:
                await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = error_body(f"A request has at most {self._max:,} bytes here.", "invalid_request_error")
        # What is left of the body is not read: the connection cannot serve another request.
        await JSONResponse(body, 413, headers={"Connection": "close"})(scope, receive, send)


class StatusCount:
    """Counts the API's responses."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in ("/v1/chat/completions", "/v1/models"):
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope["path"], message["status"])
            await send(message)

        await self._app(scope, receive, counted)


class _TooLargeError(BaseException):
    """Not an Exception, which FastAPI takes for a malformed body."""


def _declared_length(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "0")
    return int(length) if length.isdecimal() else 0
