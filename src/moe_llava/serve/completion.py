"""Pieces of answers -> the objects of OpenAI's chat completions, whole or as events."""

import json
from collections.abc import AsyncIterator
from typing import Any

from moe_llava.serve.routes import TokenRoute
from moe_llava.serve.scheduler import Piece
from moe_llava.serve.schema import (
    ChatCompletion,
    Choice,
    ChoiceRouting,
    ImageRouting,
    Reply,
    Routing,
    TokenRouting,
    Usage,
    error_body,
)
from moe_llava.serve.service import Answers, Service


class Writer:
    """Writes down the answers to one request.

    Attributes:
        error: what the model failed with, if it did.
    """

    def __init__(
        self, service: Service, name: str, created: int, prompt_tokens: int, choices: int, with_routing: bool
    ) -> None:
        self._service = service
        self._name = name
        self._created = created
        self._prompt_tokens = prompt_tokens
        self._with_routing = with_routing
        self._tokens = [0] * choices
        self._texts = [""] * choices
        self._finish: list[Any] = [None] * choices
        self._routes: list[list[TokenRouting]] = [[] for _ in range(choices)]
        self._routing: Routing | None = None
        self.error: Exception | None = None

    async def read(self, answers: Answers) -> None:
        async for choice, piece in answers:
            self._note(choice, piece)

    def whole(self) -> ChatCompletion:
        return ChatCompletion(
            id=self._name,
            created=self._created,
            model=self._service.name,
            choices=[
                Choice(
                    index=index,
                    message=Reply(content=self._texts[index]),
                    finish_reason=self._finish[index],
                    routing=ChoiceRouting(tokens=self._routes[index]) if self._with_routing else None,
                )
                for index in range(len(self._texts))
            ],
            usage=self._usage(),
            routing=self._routing,
        )

    async def events(self, answers: Answers, with_usage: bool) -> AsyncIterator[str]:
        """Server-sent events: the role of each answer, its pieces, how it ended, and the usage if asked for."""
        for index in range(len(self._texts)):
            yield self._event([_delta(index, {"role": "assistant", "content": ""})])
        async for choice, piece in answers:
            routes = self._note(choice, piece)
            if self.error is not None:
                yield _data(error_body("The model failed on this request; others are served.", "server_error"))
                return
            delta = _delta(choice, {"content": piece.text} if piece.text else {}, self._finish[choice])
            if self._with_routing:
                delta["routing"] = ChoiceRouting(tokens=routes).model_dump()
            shared = {"routing": self._routing.model_dump()} if piece.images is not None and self._routing else {}
            yield self._event([delta], **shared)
        if with_usage:
            yield self._event([], usage=self._usage().model_dump())
        yield "data: [DONE]\n\n"

    def _note(self, choice: int, piece: Piece) -> list[TokenRouting]:
        self.error = self.error or piece.error
        self._texts[choice] += piece.text
        self._tokens[choice] = piece.tokens
        self._finish[choice] = piece.finish
        routes = [self._token(route) for route in piece.routes]
        self._routes[choice] += routes
        if piece.images is not None and self._routing is None:
            config = self._service.engine.model.config.text_config
            self._routing = Routing(
                layers=list(self._service.scheduler.layers),
                num_experts=config.num_experts,
                top_k=config.num_experts_per_tok,
                images=[ImageRouting(**vars(image)) for image in piece.images],
            )
        return routes

    def _token(self, route: TokenRoute) -> TokenRouting:
        return TokenRouting(token=self._service.token_text(route.token_id), **vars(route))

    def _usage(self) -> Usage:
        written = sum(self._tokens)
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=written,
            total_tokens=self._prompt_tokens + written,
        )

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        head = {"id": self._name, "object": "chat.completion.chunk", "created": self._created}
        return _data(head | {"model": self._service.name, "choices": choices} | more)


def _delta(index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish}


def _data(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
