"""What tracing costs: forward passes and answers with and without it, side by side, and memory for many tokens.

python benchmarks/trace.py runs/tiny/sparsify --image photo.png
python benchmarks/trace.py runs/tiny/sparsify --image photo.png --tokens 10000000     # peak memory of writing them

Traced and plain calls alternate; the cost is the median over rounds of their ratio within a round, because other
work on the machine slows both of a round alike. A traced call ends with what it buffered written to the file.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import moe_llava
from moe_llava.assistant import Assistant
from moe_llava.data import Collator
from moe_llava.generate.engine import Decoding
from moe_llava.routing.recorder import Choices
from moe_llava.routing.routes import RouteInfo, RouteWriter, TokenRows
from moe_llava.routing.trace import Trace

QUESTION = "<image>\nwhat color is the shape, and is there a circle in the image?"


def forward(vlm: Assistant, image: str, batch: int) -> Callable[[], None]:
    """Eight passes of projector and decoder over `batch` prompts with an image; the tower's part is done before."""
    processor, model = vlm.engine.processor, vlm.engine.model
    encoded = processor.encode([{"role": "user", "content": QUESTION}], 1, add_generation_prompt=True)
    pixels = processor.image_processor([moe_llava.data.load_image(image)], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        features = model.model.get_patch_features(pixels.to(model.device, model.dtype)).cpu()
    sample = {name: torch.tensor(values) for name, values in encoded.items()} | {"image_features": features}
    inputs = Collator(0)([sample] * batch)
    inputs = {name: value.to(model.device) for name, value in inputs.items() if name != "labels"}

    @torch.inference_mode()
    def run() -> None:
        for _ in range(8):
            model(**inputs)

    return run


def answer(vlm: Assistant, image: str, batch: int, share_prefixes: bool) -> Callable[[], None]:
    """`batch` answers of sixteen tokens; the image is encoded once and remembered.

    Traced prompts never share the cache of their common beginning: without `share_prefixes`, plain ones do not either.
    """
    vlm.engine.model.generation_config.eos_token_id = None
    prompts = [(f"{QUESTION} {number}", image) for number in range(batch)]

    def run() -> None:
        vlm.engine.share_prefixes = share_prefixes
        vlm.batch(prompts, decoding=Decoding(max_new_tokens=16))

    return run


def cost(vlm: Assistant, run: Callable[[], None], rounds: int) -> dict[str, float]:
    """Seconds of `run` plain and traced, and the cost of tracing as a share."""
    plain: list[float] = []
    traced: list[float] = []
    for number in range(rounds + 2):
        for traces in (False, True) if number % 2 else (True, False):
            seconds = _seconds(vlm, run, traces)
            if number >= 2:
                (traced if traces else plain).append(seconds)
    ratios = [with_trace / without for with_trace, without in zip(traced, plain, strict=True)]
    return {
        "plain_ms": 1000 * statistics.median(plain),
        "traced_ms": 1000 * statistics.median(traced),
        "cost_percent": 100 * (statistics.median(ratios) - 1),
        "cost_of_best_percent": 100 * (min(traced) / min(plain) - 1),
    }


def _seconds(vlm: Assistant, run: Callable[[], None], traces: bool) -> float:
    """Of processor time on a CPU, which others on the machine do not lengthen; of the clock on a GPU."""
    if not traces:
        return _timed(run)
    with tempfile.TemporaryDirectory() as folder, Trace(vlm.engine, Path(folder) / "routes.parquet") as trace:
        return _timed(run) + _timed(trace.flush)


def _timed(run: Callable[[], None]) -> float:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def write_many(tokens: int, info: RouteInfo) -> dict[str, float]:
    """Write so many random tokens as a trace does, in passes of a thousand; peak memory of the process."""
    random = np.random.default_rng(0)
    size, layers = 1000, len(info.layers)
    spread = random.random((size, layers), dtype=np.float32)
    zeros = np.zeros(size, dtype=np.int64)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        writer = RouteWriter(Path(folder) / "routes.parquet", info)
        for number in range(max(tokens // size, 1)):
            experts = random.integers(0, info.num_experts, (size, layers, info.top_k), dtype=np.int16)
            choices = Choices(experts, random.random(experts.shape, dtype=np.float32), spread, spread)
            rows = TokenRows(zeros + number, np.arange(size), zeros, zeros, zeros - 1, zeros - 1, zeros - 1)
            writer.write(rows, choices, [str(number)] * size, ["word"] * size)
        writer.close()
        written = (Path(folder) / "routes.parquet").stat().st_size
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tokens": tokens, "peak_mib": peak, "file_mib": written / 2**20, "tokens_per_second": tokens / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--image", required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--tokens", type=int, help="only write so many tokens, and tell the peak memory")
    parser.add_argument("--out", help="JSON file for the figures")
    options = parser.parse_args()
    vlm = moe_llava.load(options.model)
    if options.tokens:
        figures = {"writing": write_many(options.tokens, Trace(vlm.engine).info)}
    else:
        runs = {
            "forward": forward(vlm, options.image, options.batch),
            "answers": answer(vlm, options.image, options.batch, share_prefixes=True),
            "answers_apart": answer(vlm, options.image, options.batch, share_prefixes=False),
        }
        figures = {name: cost(vlm, run, options.rounds) for name, run in runs.items()}
    for name, values in figures.items():
        print(name, " ".join(f"{key}={value:.1f}" for key, value in values.items()))
    if options.out:
        Path(options.out).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
