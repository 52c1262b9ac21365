"""Many clients at one server: ours in one process, and `transformers serve` beside it on the same model.

    python benchmarks/serving.py MODEL IMAGES --out serving.json

Three rounds over real sockets, each with a server of its own: ours with one client (one at a time), ours with many, and
`transformers serve` with as many. Every request streams one answer of a fixed length about one of many pictures.
"""

import argparse
import asyncio
import base64
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from rich.console import Console
from rich.table import Table

QUESTION = "what color is the shape?"
# `transformers serve` looks classes up by name in transformers itself; told there, it serves ours.
PEER = """
import sys
import tempfile
import transformers
from transformers.models.auto import modeling_auto
import moe_llava
from moe_llava.model import MoeLlavaForConditionalGeneration as model
transformers.MoeLlavaForConditionalGeneration = model
for names in (modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
    names["moe_llava"] = model.__name__
from transformers.cli.transformers import main
sys.exit(main())
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="folder of PNG pictures")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--alone", type=int, default=60, help="requests of the round with one client")
    parser.add_argument("--peer", type=int, default=60, help="requests of the peer's round; 0 for none")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("serving.json"))
    options = parser.parse_args()
    pictures = [data_url(path) for path in sorted(options.images.glob("*.png"))[:100]]
    options.model = endless(options.model, Path(tempfile.mkdtemp()) / "model")
    ours = [str(Path(sys.executable).parent / "moe-llava"), "serve", str(options.model)]
    ours += ["--max-batch", str(options.clients)]
    peer = [sys.executable, "-c", PEER, "serve", str(options.model)]
    rounds = [("ours, one at a time", ours, 1, options.alone), ("ours", ours, options.clients, options.requests)]
    if options.peer:
        rounds.append(("transformers serve", peer, options.clients, options.peer))
    results = {name: measure(command, clients, count, pictures, options) for name, command, clients, count in rounds}
    show(results)
    alone, together = (results[name].pop("answers") for name, *_ in rounds[:2])
    equal = sum(together.get(number) == text for number, text in alone.items())
    print(f"{equal} of {len(alone)} answers drawn with a seed read the same among {options.clients} clients.")
    options.out.write_text(json.dumps(results, indent=2))


def endless(model: Path, copy: Path) -> Path:
    """The same model without an end mark, so that every answer has the length asked for and all servers work alike."""
    copy.mkdir()
    for path in model.resolve().iterdir():
        if path.name == "generation_config.json":
            config = json.loads(path.read_text()) | {"eos_token_id": None}
            (copy / path.name).write_text(json.dumps(config))
        elif path.is_file():
            (copy / path.name).symlink_to(path)
    return copy


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def measure(command: list[str], clients: int, count: int, pictures: list[str], options: argparse.Namespace) -> dict:
    """One round on a server that is started for it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nowhere = subprocess.DEVNULL
    server = subprocess.Popen([*command, "--port", str(port)], stdout=nowhere, stderr=nowhere)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        return asyncio.run(load(f"http://127.0.0.1:{port}/v1", clients, count, pictures, options))
    finally:
        server.terminate()
        server.wait(60)


def wait_for(url: str, server: subprocess.Popen) -> None:
    while True:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with status {server.returncode}")


async def load(url: str, clients: int, count: int, pictures: list[str], options: argparse.Namespace) -> dict:
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        models = await client.models.list()
        name = next((model.id for model in models.data), str(options.model))
        await one(client, name, pictures[-1], options.tokens)  # what is loaded or built on first use
        waiting = list(range(count))
        done: list[tuple[float, float]] = []  # seconds to the first text, and in all
        answers: dict[int, str] = {}
        lost = 0

        async def work() -> None:
            nonlocal lost
            while waiting:
                number = waiting.pop()
                try:
                    first_text, total, answers[number] = await one(
                        client, name, pictures[number % len(pictures)], options.tokens
                    )
                    done.append((first_text, total))
                except Exception as error:  # noqa: BLE001 - counted
                    lost += 1
                    print(f"lost: {error}", file=sys.stderr)

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        seconds = time.perf_counter() - began
    first, total = zip(*done, strict=True) if done else ((0.0,), (0.0,))
    return {
        "clients": clients,
        "requests": count,
        "lost": lost,
        "seconds": seconds,
        "requests_per_second": len(done) / seconds,
        "tokens_per_second": len(done) * options.tokens / seconds,
        "first_token_p50": statistics.median(first),
        "first_token_p95": percentile(first, 0.95),
        "total_p50": statistics.median(total),
        "total_p95": percentile(total, 0.95),
        "answers": answers,
    }


def percentile(values: tuple[float, ...], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def one(client: AsyncOpenAI, model: str, picture: str, tokens: int) -> tuple[float, float, str]:
    """Seconds to the first text, seconds in all, the answer; it is drawn with a seed."""
    content: list[Any] = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": QUESTION}]
    began = time.perf_counter()
    first, ended, text = 0.0, None, ""
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        max_tokens=tokens,
        temperature=1.0,
        seed=0,
        stream=True,
    )
    async for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.perf_counter() - began
                text += choice.delta.content
            ended = choice.finish_reason or ended
    if ended != "length":
        raise RuntimeError(f"the stream ended with {ended}")
    return first or time.perf_counter() - began, time.perf_counter() - began, text


def show(results: dict[str, dict]) -> None:
    base = next(iter(results.values()))["requests_per_second"]
    columns = ("", "clients", "requests", "lost", "requests/s", "x", "first p50", "first p95", "total p50", "total p95")
    table = Table(*columns)
    for name, result in results.items():
        seconds = (result[key] for key in ("first_token_p50", "first_token_p95", "total_p50", "total_p95"))
        table.add_row(
            name,
            *(str(result[key]) for key in ("clients", "requests", "lost")),
            f"{result['requests_per_second']:.2f}",
            f"{result['requests_per_second'] / base:.2f}",
            *(f"{value:.3f} s" for value in seconds),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
