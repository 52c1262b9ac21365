"""What Prometheus reads."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from moe_llava.serve.scheduler import Piece, Scheduler

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            Gauge(f"moe_llava_{name}", text, registry=self.registry).set_function(value)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"moe_llava_{name}", text, buckets=SECONDS, registry=self.registry)

        gauge("answers_running", "Answers in the batch.", lambda: scheduler.running)
        gauge("answers_waiting", "Answers in the queue.", lambda: scheduler.waiting)
        self._responses = Counter(
            "moe_llava_responses", "Responses of the API by status.", ["path", "status"], registry=self.registry
        )
        self._answers = Counter("moe_llava_answers", "Answers by how they ended.", ["finish"], registry=self.registry)
        self._prompt_tokens = Counter("moe_llava_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self._new_tokens = Counter("moe_llava_generated_tokens", "Tokens written.", registry=self.registry)
        self._first = histogram("first_token_seconds", "From the request to its first text.")
        self._total = histogram("answer_seconds", "From the request to the end of its answer.")

    def responded(self, path: str, status: int) -> None:
        self._responses.labels(path, str(status)).inc()

    def watch(self, prompt_tokens: int) -> Callable[[], Callable[[Piece], None]]:
        """Makers of listeners, one an answer of a request that comes now."""
        began = time.monotonic()

        def listener() -> Callable[[Piece], None]:
            has_text = False

            def hear(piece: Piece) -> None:
                nonlocal has_text
                if piece.text and not has_text:
                    has_text = True
                    self._first.observe(time.monotonic() - began)
                if finish := piece.finish or ("error" if piece.error else None):
                    self._answers.labels(finish).inc()
                    self._prompt_tokens.inc(prompt_tokens)
                    self._new_tokens.inc(piece.tokens)
                    self._total.observe(time.monotonic() - began)

            return hear

        return listener

    def text(self) -> bytes:
        return generate_latest(self.registry)
