"""Strangers: pictures that are traps, addresses that are private, keys that are wrong, bodies that are too large."""

import asyncio
import gc
import http.server
import io
import ipaddress
import os
import struct
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from moe_llava.generate.engine import Engine
from moe_llava.serve.api import create_app
from moe_llava.serve.fetch import Fetcher, is_public
from moe_llava.serve.images import ImageRefusedError, decode_data_url, decode_image
from moe_llava.serve.schema import ChatRequest
from moe_llava.serve.service import Service
from tests.serve.conftest import NAME, asked, data_url, encoded, held, new_service, running, wait_for

RED = Image.new("RGB", (40, 30), "red")
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def animated() -> bytes:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def scans() -> bytes:
    """A JPEG whose last scan comes again and again: a hundred bytes more, all pixels once more."""
    jpeg = encoded(Image.new("L", (64, 64), 77), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * 200 + jpeg[-2:]


def broken_frames() -> bytes:
    gif = animated()
    return gif[: gif.rindex(b"\x2c") + 5]


REFUSED = {
    "bomb": (bomb(), "too many pixels"),
    "truncated": (encoded(Image.effect_noise((200, 200), 50))[:-3000], "cannot be decoded"),
    "animated": (animated(), "is animated"),
    "many scans": (scans(), "scans"),
    "broken frames": (broken_frames(), "cannot be decoded"),
    "text": (b"I am no image", "no image"),
    "empty": (b"", "no image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
    "pdf": (b"%PDF-1.4", "no image"),
    "narrow": (encoded(Image.new("RGB", (1, 400))), "50 times"),
    "floating point": (encoded(Image.new("F", (20, 20)), "TIFF"), "range"),
}


def rotated() -> Image.Image:
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    return Image.open(io.BytesIO(encoded(image, "JPEG", exif=exif, quality=95)))


TAKEN = {
    "1 x 1": encoded(Image.new("RGB", (1, 1), "red")),
    "16 bit": encoded(Image.new("I;16", (20, 20), 40_000)),
    "CMYK": encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG"),
    "palette": encoded(Image.new("P", (20, 20), 3)),
    "transparent": encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 0))),
    "one bit": encoded(Image.new("1", (20, 20), 1)),
    "webp": encoded(RED, "WEBP"),
    "large": encoded(Image.new("RGB", (3000, 1000), "red"), "JPEG"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_that_is_a_trap_is_refused_with_a_sentence(url: str, name: str) -> None:
    content, words = REFUSED[name]
    with pytest.raises(ImageRefusedError, match=words):
        decode_image(content)
    reply = httpx.post(f"{url}/v1/chat/completions", json={"messages": asked("What?", content)}, timeout=60)
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]
    assert httpx.get(f"{url}/health", timeout=60).status_code == 200


@pytest.mark.parametrize("name", TAKEN)
def test_an_unusual_picture_is_answered(url: str, name: str) -> None:
    image = decode_image(TAKEN[name])
    assert image.mode == "RGB" and max(image.size) <= 2048
    if name in ("1 x 1", "CMYK", "webp", "large"):
        red, green, blue = image.getpixel((0, 0))
        assert red > 200 > 60 > max(green, blue)
    if name == "16 bit":
        assert image.getpixel((0, 0)) == (156, 156, 156)
    body = {"messages": asked("?", TAKEN[name]), "max_tokens": 1}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert reply.status_code == 200, reply.text


def test_a_photograph_stands_upright() -> None:
    image = decode_image(encoded(rotated(), "JPEG", exif=rotated().getexif()))
    assert image.size == (20, 40)
    assert image.getpixel((10, 5))[0] > 200, "red is at the top"


@pytest.mark.parametrize(
    "source",
    [
        *("data:image/png,a", "data:image/png;base64,@@@", "data:text/html;base64,YQ==", "data:", "data:;base64,"),
        "data:" + ";" * 100_000,
    ],
)
def test_a_data_url_that_is_none_is_refused(url: str, source: str) -> None:
    with pytest.raises(ImageRefusedError):
        decode_data_url(source)
    assert (
        httpx.post(f"{url}/v1/chat/completions", json={"messages": asked("?", source)}, timeout=60).status_code == 400
    )


@pytest.mark.parametrize("source", ["http://example.org/a.png", "https://example.org/a.png", "file:///etc/passwd"])
def test_remote_images_are_refused_unless_allowed(url: str, source: str) -> None:
    reply = httpx.post(f"{url}/v1/chat/completions", json={"messages": asked("?", source)}, timeout=60)
    assert reply.status_code == 400
    assert "data: URLs only" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


def test_public_addresses_are() -> None:
    assert is_public(ipaddress.ip_address("8.8.8.8"))
    assert is_public(ipaddress.ip_address("2606:4700::1111"))


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/passwd", "ftp://example.org/a.png", "gopher://x/", "http://127.0.0.1/a.png", "http://localhost:1/a",
        "http://[::1]/a.png", "http://2130706433/a.png", "http://0x7f.1/a.png", "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:10.0.0.1]/", "http://user:pass@127.0.0.1/", "http:///a", "http://", "//x/a", "a.png", "",
    ],
)  # fmt: skip
def test_the_fetcher_goes_nowhere_it_should_not(source: str) -> None:
    with pytest.raises(ImageRefusedError):
        asyncio.run(Fetcher(1000)(source))


class Site(http.server.BaseHTTPRequestHandler):
    """Pictures, redirects and nuisances on a local port."""

    heard: list[str] = []

    def do_GET(self) -> None:
        self.heard.append(f"{self.headers['Host']}{self.path}")
        port = self.server.server_address[1]
        places = {
            "/away": f"http://127.0.0.2:{port}/red.png",
            "/file": "file:///etc/passwd",
            "/round": "/round",
            "/once": "/red.png",
        }
        if self.path in places:
            self.send_response(302)
            self.send_header("Location", places[self.path])
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        self.wfile.write(bytes(50_000) if self.path == "/large" else encoded(RED))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}"
        server.shutdown()


def first_only(address: object) -> bool:
    return str(address) in ("127.0.0.1", "::1")


def test_what_is_allowed_is_fetched(site: str) -> None:
    fetch = Fetcher(10_000, is_allowed=lambda address: str(address) == "127.0.0.1")
    for path in ("/red.png", "/once"):
        assert decode_image(asyncio.run(fetch(site.replace("localhost", "127.0.0.1") + path))).size == (40, 30)
    assert Site.heard[-1] == site.replace("http://localhost", "127.0.0.1") + "/red.png"


@pytest.mark.parametrize(
    "path, words",
    [
        ("/away", "not public"),
        ("/file", "not from file"),
        ("/round", "redirects more than"),
        ("/large", "more than 10,000 bytes"),
        ("/none", "answered 404"),
    ],
)
def test_redirects_and_nuisances_are_refused(site: str, path: str, words: str) -> None:
    fetch = Fetcher(10_000, is_allowed=lambda address: str(address) == "127.0.0.1")
    before = len(Site.heard)
    with pytest.raises(ImageRefusedError, match=words):
        asyncio.run(fetch(site.replace("localhost", "127.0.0.1") + path))
    assert not any(heard.startswith("127.0.0.2") for heard in Site.heard[before:])


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolves(self: object, *_: object, **__: object) -> list:
        return [(2, 1, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolves)
    with pytest.raises(ImageRefusedError, match="not public"):
        asyncio.run(Fetcher(1000)("http://two-faced.example/a.png"))


def test_a_body_over_the_limit_is_413(url: str) -> None:
    large = {"messages": asked("?", data_url(bytes(400_000)))}
    assert httpx.post(f"{url}/v1/chat/completions", json=large, timeout=60).status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 10_000

    headers = {"Content-Type": "application/json"}
    try:
        reply = httpx.post(f"{url}/v1/chat/completions", content=pieces(), headers=headers, timeout=60)
        assert reply.status_code == 413
    except httpx.WriteError:
        pass  # refused while it was still being sent
    assert httpx.get(f"{url}/health", timeout=60).status_code == 200


def test_a_wrong_or_missing_key_is_401(engine: Engine) -> None:
    service = new_service(engine)
    with running(create_app(service, api_key="sésame"), service.scheduler) as url:
        paths = ("/v1/models", "/metrics", "/v1/chat/completions", "/v1/nothing")
        for header in ({}, {"Authorization": "Bearer no"}, {"Authorization": "sésame".encode()}, {"Authorization": ""}):
            for path in paths:
                reply = httpx.request("POST" if "chat" in path else "GET", url + path, headers=header, timeout=60)
                assert reply.status_code == 401, path
                assert reply.headers["WWW-Authenticate"] == "Bearer"
        good = {"Authorization": "Bearer sésame".encode()}
        assert httpx.get(f"{url}/v1/models", headers=good, timeout=60).status_code == 200
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
    assert service.scheduler.close(60)


def test_a_full_queue_is_429_with_retry_after(engine: Engine) -> None:
    service = new_service(engine, max_rows=1, max_waiting=0)
    with running(create_app(service), service.scheduler) as url, held(service.scheduler):
        body = {"messages": asked("Hello"), "max_tokens": 2, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as first:
            pieces = first.iter_bytes()  # kept: httpx hangs up when the iterator goes
            next(pieces)  # it has its place
            short = {"messages": asked("Hello"), "max_tokens": 1}
            reply = httpx.post(f"{url}/v1/chat/completions", json=short, timeout=60)
            assert reply.status_code == 429
            assert int(reply.headers["Retry-After"]) >= 1
            reply = httpx.post(f"{url}/v1/chat/completions", json=short | {"n": 2}, timeout=60)
            assert reply.status_code == 400, "it will never have room"
            assert "takes 1" in reply.json()["error"]["message"]
    assert service.scheduler.close(60)


def test_pictures_that_fill_the_memory_are_429(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_llava.serve.service.HELD_BYTES", 3 * RED.width * RED.height)
    service = new_service(engine)
    one, two = ({"messages": asked("?", *[RED] * count), "max_tokens": 1} for count in (1, 2))
    with running(create_app(service), service.scheduler) as url:
        assert httpx.post(f"{url}/v1/chat/completions", json=one, timeout=60).status_code == 200
        assert httpx.post(f"{url}/v1/chat/completions", json=two, timeout=60).status_code == 429
        wait_for(lambda: gc.collect() is not None and not service._held)
        assert httpx.post(f"{url}/v1/chat/completions", json=one, timeout=60).status_code == 200
    assert service.scheduler.close(60)


def test_a_model_that_fails_is_500_and_others_are_served(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    service = new_service(engine)
    body = {"messages": asked("Hello"), "max_tokens": 1}

    def breaks(*_: object) -> None:
        raise RuntimeError("out of memory")

    with running(create_app(service), service.scheduler) as url:
        with monkeypatch.context() as patched:
            patched.setattr("moe_llava.generate.batch.Batch.step", breaks)
            reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            assert reply.status_code == 500
            assert "failed" in reply.json()["error"]["message"]
            reply = httpx.post(f"{url}/v1/chat/completions", json=body | {"stream": True}, timeout=60)
            assert "failed" in reply.text and "[DONE]" not in reply.text
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    assert service.scheduler.close(60)


FLOOD = {
    "messages": b'{"messages":[' + b"{}," * 99_999 + b"{}]}",
    "parts": b'{"messages":[{"role":"user","content":[' + b"{}," * 90_000 + b"{}]}]}",
    "stops": b'{"messages":[{"role":"user","content":"a"}],"stop":[' + b"1," * 99_999 + b"1]}",
    "fields": b'{"messages":[],' + b",".join(b'"%d":1' % at for at in range(20_000)) + b"}",
    "metadata": b'{"messages":[],"metadata":{' + b",".join(b'"%d":1' % at for at in range(20_000)) + b"}}",
}


@pytest.mark.parametrize("kind", FLOOD)
def test_a_flood_of_mistakes_is_not_described_one_by_one(kind: str) -> None:
    """Each would take a kilobyte: a body of 20 MB would end the process."""
    with pytest.raises(ValidationError) as raised:
        ChatRequest.model_validate_json(FLOOD[kind])
    assert raised.value.error_count() < 10


def test_a_page_that_points_its_name_here_is_refused(engine: Engine) -> None:
    service = new_service(engine)
    with running(create_app(service, hosts=["127.0.0.1"]), service.scheduler) as url:
        assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"}, timeout=60).status_code == 400
    assert service.scheduler.close(60)


def test_fuzzed_requests_never_break_it(engine: Engine, service: Service) -> None:
    """By the API's own document. `MOE_LLAVA_FUZZ=2000` sends that many."""
    short = Service(engine, NAME, service.scheduler, default_new_tokens=2)
    statuses = fuzz(create_app(short), int(os.environ.get("MOE_LLAVA_FUZZ", "60")))
    sys.stdout.write(f"{sum(statuses.values())} requests: {dict(statuses)}\n")
    assert max(statuses) < 500, statuses
    assert {200, 422} <= set(statuses)


def fuzz(app: FastAPI, requests: int) -> Counter[int]:
    """How often each status came; fails on what the document does not foresee."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    statuses: Counter[int] = Counter()
    operations = [result.ok() for result in schema.get_all_operations()]
    chat = next(operation for operation in operations if operation.path == "/v1/chat/completions")
    # Most go where there is most to get wrong; the others take no input, and few requests of theirs differ.
    shares = {operation.label: requests // 20 for operation in operations}
    shares[chat.label] = requests
    for operation in operations:

        @settings(
            max_examples=shares[operation.label],
            phases=[Phase.generate],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=st.one_of(operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode))
        def send(case: schemathesis.Case) -> None:
            for name in ("max_tokens", "max_completion_tokens"):
                if isinstance(case.body, dict) and isinstance(case.body.get(name), int) and case.body[name] > 3:
                    case.body[name] = 3  # what is asked for, not how long it takes, is on trial
            response = case.call()
            statuses[response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

        send()
    return statuses
