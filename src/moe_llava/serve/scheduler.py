"""Requests that come at any time, answered together: a thread that steps one batch and lets newcomers join it."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from moe_llava.generate.answer_text import AnswerText
from moe_llava.generate.batch import Batch, Row
from moe_llava.generate.engine import Decoding, Engine
from moe_llava.generate.plan import Prompt
from moe_llava.serve.routes import ImageRoutes, RouterTap, TokenRoute

Finish = Literal["stop", "length", "cancelled"]


class BusyError(Exception):
    """The queue is full: try again later."""


class ClosingError(Exception):
    """The server finishes what runs and takes nothing new."""


@dataclass(frozen=True)
class Piece:
    """News of an answer.

    Attributes:
        text: what is said more; may be empty.
        tokens: how many tokens were written in all.
        routes: of the tokens that are new, where asked for.
        images: routes of the prompt's images, once, with the first piece, where asked for.
        finish: why the answer is over, with its last piece.
        error: the model failed; nothing follows.
    """

    text: str = ""
    tokens: int = 0
    routes: tuple[TokenRoute, ...] = ()
    images: tuple[ImageRoutes, ...] | None = None
    finish: Finish | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Job:
    """One answer that is asked for.

    Attributes:
        notify: called in the scheduler's thread with every `Piece`; must return at once and not raise.
        routing: whether to tell which experts the tokens took.
    """

    prompt: Prompt
    decoding: Decoding
    notify: Callable[[Piece], None]
    stop: tuple[str, ...] = ()
    routing: bool = False
    cancelled: bool = field(default=False, init=False)

    def cancel(self) -> None:
        """Give its place free at the next token; from any thread."""
        self.cancelled = True

    @property
    def size(self) -> int:
        """Tokens that its keys and values may take."""
        return len(self.prompt.ids) + self.decoding.max_new_tokens


@dataclass(eq=False)
class _Answer:
    """A job that runs."""

    job: Job
    row: Row
    text: AnswerText
    told: int = 0  # tokens whose routes were told
    images: tuple[ImageRoutes, ...] | None = None


class Scheduler:
    """Answers jobs in one batch that others join and leave, a token each step.

    Args:
        max_rows: most answers in progress.
        max_waiting: most answers that wait when all rows are taken; more are refused.
        max_reading: most prompt tokens that are read between two steps of those who wait for their next token; a longer
            prompt is read alone.

    Attributes:
        layers: indices of the model's sparse layers.
    """

    def __init__(self, engine: Engine, *, max_rows: int = 32, max_waiting: int = 64, max_reading: int = 4096) -> None:
        self.engine = engine
        self.max_rows = max_rows
        self.max_waiting = max_waiting
        self._max_reading = max_reading
        self._capacity = max(1, engine.cache_tokens)
        self._joins = engine.joins
        self._tap = RouterTap(engine.model)
        self.layers = self._tap.layers
        self._news = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[_Answer] = []
        self._starting: list[Job] = []  # whose prompts are being read
        self._batch: Batch | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def max_answers(self) -> int:
        """Most answers that are taken, in progress and waiting."""
        return self.max_rows + self.max_waiting

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def idle(self) -> bool:
        with self._news:
            return not self._waiting and not self._running and not self._starting

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all jobs, or none.

        Raises:
            BusyError: there is no room for them in the queue.
            ClosingError: `close` was called.
        """
        with self._news:
            if self._closing:
                raise ClosingError
            taken = len(self._running) + len(self._starting) + len(self._waiting)
            if taken + len(jobs) > self.max_answers:
                raise BusyError
            self._waiting.extend(jobs)
            self._news.notify()

    def refuse(self) -> None:
        """Finish what was taken, take nothing new. Does not wait; only sets a flag, so a signal handler may call it."""
        self._closing = True

    def close(self, timeout: float | None = None) -> bool:
        """`refuse`, and wait for the end; whether it came in time."""
        self.refuse()
        with self._news:
            self._news.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while self._has_work():
            try:
                self._let_go()
                self._start(self._admit())
                if self._running:
                    self._step()
            except Exception as error:  # noqa: BLE001 - whatever a model raises, the next requests are served
                self._fail(error)

    def _has_work(self) -> bool:
        """Wait for a job; whether one came before the end."""
        with self._news:
            while not self._waiting and not self._running:
                if self._closing:
                    return False
                self._news.wait(timeout=0.5)  # `refuse` may not wake it
            return True

    def _admit(self) -> list[Job]:
        """Who may join now, first come first served."""
        newcomers: list[Job] = []
        with self._news:
            if self._running and not self._joins:
                return newcomers
            sizes = [answer.job.size for answer in self._running]
            reading = 0
            while self._waiting and len(self._running) + len(newcomers) < self.max_rows:
                job = self._waiting[0]
                reading += len(job.prompt.ids)
                sizes.append(job.size)
                if newcomers and reading > self._max_reading:
                    break
                if len(sizes) > 1 and max(sizes) * len(sizes) > self._capacity:
                    break
                newcomers.append(self._waiting.popleft())
            self._starting = list(newcomers)
        return newcomers

    def _let_go(self) -> None:
        """Give the places free of those who hung up, in the batch and in the queue."""
        with self._news:
            gone = [job for job in self._waiting if job.cancelled]
            for job in gone:
                self._waiting.remove(job)
        for job in gone:
            job.notify(Piece(finish="cancelled"))
        for answer in [answer for answer in self._running if answer.job.cancelled]:
            self._finish(answer, "cancelled")

    def _start(self, jobs: list[Job]) -> None:
        """Read the prompts and join the batch. If that fails, each is tried alone, so that one hurts no other."""
        if not jobs:
            return
        answers = [self._answer(job) for job in jobs]
        try:
            with self._tap.listen(any(job.routing for job in jobs)):
                started = self.engine.start([job.prompt for job in jobs], [answer.row for answer in answers])
        except Exception as error:  # noqa: BLE001 - told to who asked
            if len(jobs) == 1:
                self._starting.remove(jobs[0])
                jobs[0].notify(Piece(error=error))
            else:
                for job in jobs:
                    self._start([job])
            return
        with self._news:  # now, so that they are told if joining fails
            self._running += answers
            self._starting = [job for job in self._starting if job not in jobs]
        for at, answer in enumerate(answers):
            if answer.job.routing:
                answer.images = self._tap.images(at, [job.prompt.ids for job in jobs])
        if self._batch is None:
            self._batch = started
        else:
            self._batch.join(started)

    def _answer(self, job: Job) -> _Answer:
        # The last token of an answer is said and not read. To know its experts, the row is made to go on by one.
        longer = replace(job.decoding, max_new_tokens=job.decoding.max_new_tokens + job.routing)
        return _Answer(job, Row(0, longer), AnswerText(self.engine.processor.tokenizer, job.stop))

    def _step(self) -> None:
        assert self._batch is not None
        with self._tap.listen(any(answer.job.routing for answer in self._running)):
            self._batch.step()
        places = {id(row): at for at, row in enumerate(self._batch.rows)}
        for answer in list(self._running):
            self._tell(answer, places.get(id(answer.row)))

    def _tell(self, answer: _Answer, place: int | None) -> None:
        """Hand on what the last step wrote; `place` is the row's in the batch, None where it has left."""
        row, job = answer.row, answer.job
        finish: Finish | None = row.ended
        if len(row.tokens) >= job.decoding.max_new_tokens and finish is None:
            finish = "length"
        text = answer.text.take(row.tokens, ended=finish is not None)
        if answer.text.stopped:
            finish = "stop"
        routes: tuple[TokenRoute, ...] = ()
        if job.routing and place is not None and len(row.tokens) > answer.told:
            routes = (self._tap.token(place, row.tokens[-1]),)
            answer.told = len(row.tokens)
        if finish:
            self._finish(answer, finish, Piece(text, len(row.tokens), routes, answer.images))
        elif text or routes:
            job.notify(Piece(text, len(row.tokens), routes, answer.images))
            answer.images = None

    def _finish(self, answer: _Answer, why: Finish, last: Piece | None = None) -> None:
        assert self._batch is not None
        if answer.row in self._batch.rows:
            self._batch.leave(answer.row)
        self._forget(answer)
        answer.job.notify(replace(last or Piece(tokens=len(answer.row.tokens)), finish=why))

    def _forget(self, answer: _Answer) -> None:
        with self._news:
            self._running.remove(answer)
            if not self._running:
                self._batch = None

    def _fail(self, error: Exception) -> None:
        """The batch is lost: tell everyone in it, and who was about to join."""
        with self._news:
            lost, self._starting = self._starting, []
        for job in lost:
            job.notify(Piece(error=error))
        for answer in list(self._running):
            self._forget(answer)
            answer.job.notify(Piece(tokens=len(answer.row.tokens), error=error))
        self._batch = None
