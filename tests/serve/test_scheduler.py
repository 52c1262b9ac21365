"""Many at once: joined, bounded, fair, and nobody hurt by another."""

import queue
from functools import partial

import pytest
import torch
from PIL import Image

from moe_llava.generate.engine import Decoding, Engine, Request
from moe_llava.serve.scheduler import BusyError, ClosingError, Job, Piece, Scheduler
from tests.serve.conftest import held, wait_for

COLOURS = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue", "white")]


class Heard:
    """What a job's pieces add up to."""

    def __init__(self) -> None:
        self.pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self.text = ""

    def end(self) -> Piece:
        while True:
            piece = self.pieces.get(timeout=60)
            self.text += piece.text
            if piece.finish or piece.error:
                return piece


def job(engine: Engine, number: int, decoding: Decoding, **options: object) -> tuple[Job, Heard]:
    heard = Heard()
    text = "<image>\n" + "What colour is it? " * (1 + number % 3)
    prompt = engine.prompt(Request(({"role": "user", "content": text},), (COLOURS[number % 4],)))
    return Job(prompt, decoding, heard.pieces.put, **options), heard


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_an_answer_does_not_depend_on_who_else_is_served(engine: Engine, temperature: float) -> None:
    def decoding(number: int) -> Decoding:
        return Decoding(6 + number % 9, temperature, 0.95, seed=number)

    alone = []
    scheduler = Scheduler(engine, max_rows=1)
    for number in range(12):
        one, heard = job(engine, number, decoding(number))
        scheduler.submit([one])
        assert heard.end().finish == "length"
        alone.append(heard.text)
    assert scheduler.close(60)
    assert len(set(alone)) > 6
    together = Scheduler(engine, max_rows=5)
    jobs = [job(engine, number, decoding(number)) for number in range(12)]
    for one, _ in jobs:
        together.submit([one])
    for (_, heard), text in zip(jobs, alone, strict=True):
        heard.end()
        assert heard.text == text
    assert together.close(60)


def test_newcomers_join_while_others_decode(engine: Engine) -> None:
    scheduler = Scheduler(engine)
    long, heard_long = job(engine, 0, Decoding(150))
    short, heard_short = job(engine, 1, Decoding(2))
    with held(scheduler) as let:
        scheduler.submit([long])
        wait_for(lambda: scheduler.running == 1)
        scheduler.submit([short])
        let(3)  # one without the newcomer, for which the long one had been waiting
        assert heard_short.end().finish == "length"
        assert scheduler.running == 1, "the long one must still run"
        long.cancel()
        let(1)
        assert heard_long.end().finish == "cancelled"
    assert scheduler.close(60)


def test_a_long_prompt_joins_alone(engine: Engine) -> None:
    """Between two steps of others no more is read than `max_reading` tokens, or one prompt."""
    scheduler = Scheduler(engine, max_reading=1)
    jobs = [job(engine, number, Decoding(9)) for number in range(3)]
    with held(scheduler) as let:
        for one, _ in jobs:
            scheduler.submit([one])
        for running in (1, 2, 3):
            wait_for(lambda running=running: scheduler.running == running)
            let(1)
    for _, heard in jobs:
        assert heard.end().finish == "length"
    assert scheduler.close(60)


def test_the_cache_does_not_grow_while_rows_come_and_go(engine: Engine) -> None:
    scheduler = Scheduler(engine, max_rows=2)
    jobs = [job(engine, number, Decoding(20)) for number in range(14)]
    widths = []
    for one, heard in jobs:
        one.notify = partial(lambda heard, piece: (heard(piece), widths.append(width())), heard.pieces.put)

    def width() -> int:
        return scheduler._batch._sequences.mask.shape[1] if scheduler._batch else 0

    for one, _ in jobs:
        scheduler.submit([one])
    for _, heard in jobs:
        heard.end()
    assert max(widths) <= max(one.size for one, _ in jobs)
    assert scheduler.close(60)


def test_the_queue_is_bounded_and_takes_all_or_none(engine: Engine) -> None:
    scheduler = Scheduler(engine, max_rows=1, max_waiting=2)
    first, heard = job(engine, 0, Decoding(150))
    waiting = [job(engine, number, Decoding(1)) for number in range(3)]
    with held(scheduler):
        scheduler.submit([first])
        with pytest.raises(BusyError):
            scheduler.submit([one for one, _ in waiting])
        scheduler.submit([one for one, _ in waiting[:2]])
        with pytest.raises(BusyError):
            scheduler.submit([waiting[2][0]])
        wait_for(lambda: scheduler.running == 1)
        assert scheduler.waiting == 2
        first.cancel()
    assert heard.end().finish == "cancelled"
    for _, each in waiting[:2]:
        assert each.end().finish == "length"
    assert scheduler.close(60)


def test_who_hangs_up_while_waiting_makes_room(engine: Engine) -> None:
    scheduler = Scheduler(engine, max_rows=1, max_waiting=1)
    first, _ = job(engine, 0, Decoding(150))
    gone, heard_gone = job(engine, 1, Decoding(1))
    with held(scheduler) as let:
        scheduler.submit([first])
        wait_for(lambda: scheduler.running == 1)
        scheduler.submit([gone])
        gone.cancel()
        let(1)
        assert heard_gone.end().finish == "cancelled"
        scheduler.submit([job(engine, 2, Decoding(1))[0]])
        first.cancel()
    assert scheduler.close(60)


def test_closing_finishes_what_was_taken_and_refuses_what_is_new(engine: Engine) -> None:
    scheduler = Scheduler(engine, max_rows=1)
    jobs = [job(engine, number, Decoding(8)) for number in range(3)]
    scheduler.submit([one for one, _ in jobs])
    scheduler.refuse()
    with pytest.raises(ClosingError):
        scheduler.submit([job(engine, 0, Decoding(1))[0]])
    assert [heard.end().finish for _, heard in jobs] == ["length"] * 3
    assert scheduler.close(60)


def test_one_that_fails_hurts_no_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(engine)
    good, heard_good = job(engine, 0, Decoding(5))
    bad, heard_bad = job(engine, 1, Decoding(5))
    object.__setattr__(bad.prompt, "images", ("/nowhere.png",))
    scheduler.submit([bad, good])
    assert isinstance(heard_bad.end().error, ValueError)
    assert heard_good.end().finish == "length"

    def breaks(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr("moe_llava.generate.batch.Batch.step", breaks)
        lost, heard_lost = job(engine, 0, Decoding(5))
        scheduler.submit([lost])
        assert isinstance(heard_lost.end().error, RuntimeError)
    again, heard_again = job(engine, 0, Decoding(5))
    scheduler.submit([again])
    assert heard_again.end().finish == "length"
    assert heard_again.text == heard_good.text
    assert scheduler.close(60)


def test_a_batch_that_cannot_be_joined_is_told_to_all(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(engine)
    first, heard_first = job(engine, 0, Decoding(150))
    second, heard_second = job(engine, 1, Decoding(5))

    def breaks(*_: object) -> None:
        raise RuntimeError("out of memory")

    with held(scheduler) as let:
        scheduler.submit([first])
        wait_for(lambda: scheduler.running == 1)
        monkeypatch.setattr("moe_llava.generate.batch.Batch.join", breaks)
        scheduler.submit([second])
        let(1)
        assert isinstance(heard_first.end().error, RuntimeError)
        assert isinstance(heard_second.end().error, RuntimeError)
        assert scheduler.idle
    assert scheduler.close(60)


def test_identical_images_are_encoded_once(engine: Engine) -> None:
    fresh = Engine(engine.model, engine.processor)
    seen: list[int] = []
    tower = engine.model.model.vision_tower
    handle = tower.register_forward_hook(lambda module, inputs, output: seen.append(len(output.last_hidden_state)))
    scheduler = Scheduler(fresh)
    jobs = [job(fresh, 4 * number, Decoding(3)) for number in range(6)]
    for one, _ in jobs:
        scheduler.submit([one])
    for _, heard in jobs:
        heard.end()
    handle.remove()
    assert sum(seen) == 1
    assert scheduler.close(60)


def test_more_than_the_memory_holds_waits(engine: Engine) -> None:
    one, _ = job(engine, 0, Decoding(20))
    small = Engine(engine.model, engine.processor, batch_bytes=2**30)
    per_token = 2**30 // small.cache_tokens
    small.batch_bytes = per_token * (2 * one.size + 1)
    scheduler = Scheduler(small)
    most = []
    jobs = [job(engine, 12 * number, Decoding(20)) for number in range(5)]
    for each, heard in jobs:
        each.notify = partial(lambda heard, piece: (heard(piece), most.append(scheduler.running)), heard.pieces.put)
    scheduler.submit([each for each, _ in jobs])
    for _, heard in jobs:
        assert heard.end().finish == "length"
    assert max(most) == 2
    assert scheduler.close(60)


def test_a_seed_does_not_touch_torchs_own(engine: Engine) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    scheduler = Scheduler(engine)
    one, heard = job(engine, 0, Decoding(5, temperature=1.0, seed=1))
    scheduler.submit([one])
    heard.end()
    assert torch.equal(torch.rand(1), expected)
    assert scheduler.close(60)
    wait_for(lambda: scheduler.idle)
