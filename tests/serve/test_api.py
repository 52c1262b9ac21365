"""The API as OpenAI's own client meets it."""

import http.client
import json
import re

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

from moe_llava.generate.engine import Decoding, Engine, Request
from moe_llava.serve.service import Service
from tests.serve.conftest import NAME, asked, held, wait_for

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")


def test_the_answer_is_the_engines(client: OpenAI, engine: Engine) -> None:
    for text, images in (("What colour is it?", (RED,)), ("Which?", (RED, BLUE)), ("Hello", ())):
        done = client.chat.completions.create(model=NAME, messages=asked(text, *images), max_tokens=7)
        content = "<image>\n" * len(images) + text
        alone = engine.answer([Request(({"role": "user", "content": content},), images)], Decoding(7))[0]
        assert done.choices[0].message.content == alone
        assert done.choices[0].finish_reason == "length"
        assert done.usage.completion_tokens == 7
        prompt = engine.prompt(Request(({"role": "user", "content": content},), images))
        assert done.usage.prompt_tokens == len(prompt.ids)
        assert done.usage.total_tokens == len(prompt.ids) + 7


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_is_the_answer_in_pieces(client: OpenAI, n: int) -> None:
    arguments = {
        "model": NAME,
        "messages": asked("What?", RED),
        "max_tokens": 12,
        "n": n,
        "temperature": 1.5,
        "seed": 3,
    }
    whole = client.chat.completions.create(**arguments)
    texts, ends, usage = [""] * n, [""] * n, None
    for chunk in client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == ["length"] * n
    assert usage == whole.usage
    assert len(set(texts)) == n


def test_a_stop_string_ends_the_answer_before_it(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=NAME, messages=asked("What?", RED), max_tokens=20)
    text = whole.choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    wanted = text[: text.index(stop)].rstrip()
    arguments = {"model": NAME, "messages": asked("What?", RED), "max_tokens": 20, "stop": ["~~~", stop]}
    done = client.chat.completions.create(**arguments)
    assert done.choices[0].message.content == wanted
    assert done.choices[0].finish_reason == "stop"
    assert done.usage.completion_tokens < 20
    chunks = list(client.chat.completions.create(**arguments, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted


def test_every_token_and_every_patch_tell_their_experts(client: OpenAI, service: Service) -> None:
    arguments = {"model": NAME, "messages": asked("Which?", RED, BLUE), "max_tokens": 5, "n": 2, "temperature": 2.0}
    done = client.chat.completions.create(**arguments, extra_body={"routing": True})
    shared = done.routing
    layers = len(service.scheduler.layers)
    assert shared["layers"] == list(service.scheduler.layers)
    assert (shared["num_experts"], shared["top_k"]) == (4, 2)
    assert len(shared["images"]) == 2
    for image in shared["images"]:
        assert (image["rows"], image["columns"]) == (2, 2)
        assert len(image["experts"]) == len(image["weights"]) == 4
    for choice in done.choices:
        tokens = choice.routing["tokens"]
        assert len(tokens) == 5
        assert "".join(token["token"] for token in tokens).strip() == choice.message.content
        for token in tokens:
            assert len(token["experts"]) == len(token["weights"]) == layers
            for experts, weights in zip(token["experts"], token["weights"], strict=True):
                assert len(set(experts)) == 2 and set(experts) < set(range(4))
                assert sum(weights) == pytest.approx(1, abs=1e-3)


def test_routing_is_what_the_model_does_alone(client: OpenAI, engine: Engine) -> None:
    """Against the model's own router logits, read in one pass over prompt and answer."""
    import torch

    from moe_llava.model.router import choose_experts

    noise = [asked("Hi" * n, BLUE) for n in range(3)]
    streams = [client.chat.completions.create(model=NAME, messages=m, max_tokens=20, stream=True) for m in noise]
    arguments = {"model": NAME, "messages": asked("What?", RED), "max_tokens": 6}
    done = client.chat.completions.create(**arguments, extra_body={"routing": True})
    for stream in streams:
        stream.close()
    prompt = engine.prompt(Request(({"role": "user", "content": "<image>\nWhat?"},), (RED,)))
    tokens = [token["token_id"] for token in done.choices[0].routing["tokens"]]
    pixels = engine.processor.image_processor([RED], return_tensors="pt")["pixel_values"]
    ids = torch.tensor([prompt.ids + tokens])
    with torch.inference_mode():
        output = engine.model(input_ids=ids, pixel_values=pixels, output_router_logits=True, use_cache=False)
    patches = [at for at, token in enumerate(prompt.ids) if token == engine.model.config.image_token_id]
    for layer, logits in enumerate(output.router_logits):
        weights, experts = choose_experts(logits.float(), 2, True)
        written = [token["experts"][layer] for token in done.choices[0].routing["tokens"]]
        assert written == experts[len(prompt.ids) :].tolist()
        seen = [patch[layer] for patch in done.routing["images"][0]["experts"]]
        assert seen == experts[patches].tolist()
        told = [patch[layer] for patch in done.routing["images"][0]["weights"]]
        assert torch.allclose(torch.tensor(told), weights[patches], atol=1e-3)


def test_a_stream_carries_the_same_routing(client: OpenAI) -> None:
    arguments = {"model": NAME, "messages": asked("What?", RED), "max_tokens": 6, "extra_body": {"routing": True}}
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True))
    tokens = [token for chunk in chunks for token in getattr(chunk.choices[0], "routing", {"tokens": []})["tokens"]]
    assert tokens == whole.choices[0].routing["tokens"]
    assert [chunk.routing for chunk in chunks if hasattr(chunk, "routing")] == [whole.routing]


def test_models_health_and_metrics(client: OpenAI, url: str) -> None:
    card = client.models.list().data[0]
    assert card.id == NAME
    assert card.context == 600
    assert card.image_tokens == 4
    client.chat.completions.create(model=NAME, messages=asked("Hello"), max_tokens=2)
    assert httpx.get(f"{url}/health", timeout=60).json()["status"] == "ok"
    text = httpx.get(f"{url}/metrics", timeout=60).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["moe_llava_generated_tokens_total"]) >= 2
    assert float(values["moe_llava_first_token_seconds_count"]) >= 1
    assert float(values['moe_llava_responses_total{path="/v1/chat/completions",status="200"}']) >= 1


def test_the_conversation_goes_on(client: OpenAI, engine: Engine) -> None:
    turns = [
        *asked("What?", RED),
        {"role": "assistant", "content": "It is red."},
        {"role": "user", "content": "Why?"},
    ]
    done = client.chat.completions.create(model=NAME, messages=turns, max_tokens=5)
    texts = [("user", "<image>\nWhat?"), ("assistant", "It is red."), ("user", "Why?")]
    request = Request(tuple({"role": role, "content": text} for role, text in texts), (RED,))
    assert done.choices[0].message.content == engine.answer([request], Decoding(5))[0]


def test_another_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.chat.completions.create(model="gpt-9", messages=asked("Hello"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"messages": asked("Which?", *[RED] * 150)}, r"\d{3} tokens.* 150 x 4 of images"),
        ({"messages": asked("What? " * 300)}, "exceed model_max_length 600"),
        ({"messages": asked("a" * 100_000)}, "100,000 characters"),
        ({"max_tokens": 599}, r"599 more are asked for; the context has 600: ask for at most \d+"),
        ({"messages": asked("<image> What?", RED)}, "2 <image> but 1 images"),
    ],
)
def test_what_does_not_fit_is_400_with_the_numbers(client: OpenAI, change: dict, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(**{"model": NAME, "messages": asked("Hello")} | change)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"messages": []}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "a"}], "\\ud800": 1}',
        b'{"messages": [{"role": "tool", "content": "a"}]}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "a"}], "tools": []}',
        b'{"messages": [{"role": "user", "content": "a"}], "n": 1000000}',
        b'{"messages": [{"role": "user", "content": "a"}], "stop": [""]}',
        b"\xff\xfe{",
        b"[" * 100_000,
        b'{"n": ' + b"9" * 10_000 + b"}",
    ],
)
def test_malformed_requests_are_422_and_a_sentence(url: str, body: bytes) -> None:
    reply = httpx.post(
        f"{url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert reply.status_code == 422, reply.text
    assert reply.json()["error"]["message"]


def test_what_is_not_said_to_be_json_is_refused_with_the_remedy(url: str) -> None:
    reply = httpx.post(f"{url}/v1/chat/completions", content=b'{"messages": []}', timeout=60)
    assert reply.status_code == 422
    assert "application/json" in reply.json()["error"]["message"]


def test_null_is_a_field_left_out(client: OpenAI, url: str) -> None:
    body = {"model": NAME, "messages": asked("Hello"), "max_tokens": 3, "temperature": None, "n": None, "tools": None}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    done = client.chat.completions.create(model=NAME, messages=asked("Hello"), max_tokens=3)
    assert reply["choices"][0]["message"]["content"] == done.choices[0].message.content
    said = [*asked("Hello"), done.choices[0].message.model_dump(), *asked("Why?")]
    client.chat.completions.create(model=NAME, messages=said, max_tokens=1)


def test_the_smallest_temperature_does_not_break_the_batch(client: OpenAI) -> None:
    for temperature in (1e-300, 1e-9, 2.0):
        client.chat.completions.create(
            model=NAME, messages=asked("Hello"), temperature=temperature, top_p=1e-12, max_tokens=3
        )


def written(service: Service) -> float:
    return float(re.search(r"moe_llava_generated_tokens_total ([\d.]+)", service.metrics.text().decode())[1])


def cancelled(service: Service) -> bool:
    scheduler = service.scheduler
    jobs = [answer.job for answer in scheduler._running] + list(scheduler._waiting)
    return bool(jobs) and all(job.cancelled for job in jobs)


def test_a_hang_up_in_a_stream_gives_the_place_free_at_the_next_token(client: OpenAI, service: Service) -> None:
    before = written(service)
    with held(service.scheduler) as let:
        stream = client.chat.completions.create(model=NAME, messages=asked("Hello"), stream=True, max_tokens=400)
        wait_for(lambda: service.scheduler.running == 1)  # from here it waits for its first step
        stream.close()
        wait_for(lambda: cancelled(service))
        let(1)
        wait_for(lambda: service.scheduler.idle)
    assert written(service) - before == 1


def test_a_hang_up_before_the_answer_gives_the_places_free(url: str, service: Service) -> None:
    """Of those in the batch and of those in the queue."""
    before = written(service)
    body = json.dumps({"messages": asked("Hello"), "max_tokens": 400, "n": 8})
    callers = [http.client.HTTPConnection(url.removeprefix("http://")) for _ in range(2)]
    with held(service.scheduler) as let:
        for at, caller in enumerate(callers, start=1):
            caller.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            wait_for(lambda at=at: service.scheduler.running + service.scheduler.waiting == 8 * at)
        assert service.scheduler.waiting == 8
        for caller in callers:
            caller.close()
        wait_for(lambda: cancelled(service))
        let(1)
        wait_for(lambda: service.scheduler.idle)
    assert written(service) - before == 8
