"""The same questions to several OpenAI-compatible servers, turn by turn: answers that agree, and throughput.

    moe-llava serve MODEL --port 8001
    moe-llava export MODEL stock --to hf-llava && vllm serve stock --port 8002 --dtype float32
    python benchmarks/engines.py QUESTIONS.jsonl ours=http://127.0.0.1:8001/v1 vllm=http://127.0.0.1:8002/v1

Greedy decoding; every round asks all servers one after the other, so that a busy machine is busy for each.
"""

import argparse
import asyncio
import base64
import json
import statistics
import time
from pathlib import Path

from openai import AsyncOpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", type=Path, help='JSON Lines of {"question", "image"}')
    parser.add_argument("servers", nargs="+", help="NAME=URL")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.questions.read_text().splitlines()[: options.requests]]
    asked = [(row["question"], data_url(options.questions.parent / row["image"])) for row in rows]
    servers = dict(item.split("=", 1) for item in options.servers)
    figures = asyncio.run(rounds(servers, asked, options))
    for name, figure in figures.items():
        print(name, figure)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


async def rounds(servers: dict[str, str], asked: list[tuple[str, str]], options: argparse.Namespace) -> dict:
    """Requests a second (median of the rounds, and each), latencies, and how many answers are the first server's."""
    first, answers = next(iter(servers)), {}
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    waits: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(options.rounds + 1):  # the first warms up
        for name, url in servers.items():
            started = time.perf_counter()
            answers[name], latencies = await ask_all(url, asked, options)
            if number:
                seconds[name].append(time.perf_counter() - started)
                waits[name] += latencies
    return {
        name: {
            "requests a second": round(len(asked) / statistics.median(seconds[name]), 2),
            "rounds": [round(len(asked) / one, 2) for one in seconds[name]],
            "median seconds": round(statistics.median(waits[name]), 3),
            "95 % seconds": round(sorted(waits[name])[int(0.95 * len(waits[name]))], 3),
            f"answers as {first}'s": sum(map(str.__eq__, answers[name], answers[first])),
            "of": len(asked),
        }
        for name in servers
    }


async def ask_all(url: str, asked: list[tuple[str, str]], options: argparse.Namespace) -> tuple[list[str], list[float]]:
    client = AsyncOpenAI(base_url=url, api_key="none", timeout=600)
    model = (await client.models.list()).data[0].id
    gate = asyncio.Semaphore(options.clients)
    latencies: list[float] = []

    async def ask(question: str, picture: str) -> str:
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
        async with gate:
            started = time.perf_counter()
            done = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": content}],  # type: ignore[misc, list-item]
                max_tokens=options.tokens,
                temperature=0,
            )
            latencies.append(time.perf_counter() - started)
            return (done.choices[0].message.content or "").strip()

    answers = await asyncio.gather(*(ask(*one) for one in asked))
    return list(answers), latencies


if __name__ == "__main__":
    main()
