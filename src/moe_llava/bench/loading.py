"""Opening a checkpoint beside reading its bytes, and the most memory that it takes."""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moe_llava.bench.memory import fresh, peak_bytes, resident_bytes, weight_bytes
from moe_llava.bench.models import random_tensors, shape_config
from moe_llava.bench.timing import Timings
from moe_llava.checkpoint.quantized import load_quantized, quantize_folder
from moe_llava.checkpoint.stream import write_model
from moe_llava.checkpoint.weights import empty_model, load_weights
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.encoding import Scheme

PIECE = 2**24


def measure(
    shape: str,
    *,
    rounds: int,
    folder: Path,
    quantize: Scheme | None = None,
    layers: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write a random checkpoint of a shape's mixture under `folder`, then read its bytes and open it, in turn.

    Both are done by fresh processes, with the file in the page cache: what is measured is not the disk.
    """
    config = shape_config(shape, experts=4, layers=layers)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "plain"
        path.mkdir()
        progress(f"loading: writing {shape}")
        model = empty_model(config)
        specs = {key: (tuple(one.shape), torch.bfloat16) for key, one in model.named_parameters()}
        write_model(path, specs, random_tensors(model, torch.bfloat16))
        config.save_pretrained(path)
        model.generation_config.save_pretrained(path)
        if quantize:
            quantize_folder(path, Path(name) / quantize, config, quantize)
            path = Path(name) / quantize
        rows: dict[str, list[float]] = {"reading": [], "opening": []}
        facts: dict[str, int] = {}
        progress("loading: reading and opening")
        for _ in range(rounds):
            rows["reading"].append(fresh(_read, path)[0])
            seconds, facts = fresh(_open, path, quantize)
            rows["opening"].append(seconds)
        timings = Timings(rows)
        return {
            "checkpoint": shape + (f", {quantize}" if quantize else ""),
            "runs": timings.as_dict("reading"),
            **facts,
            "peak_over_model": facts["added_peak_bytes"] / facts["weight_bytes"],
        }


def _read(folder: Path) -> tuple[float, dict[str, int]]:
    """Read the files of weights into memory of one's own, once."""
    paths = sorted(folder.glob("*.safetensors"))
    memory = [torch.empty(path.stat().st_size, dtype=torch.uint8) for path in paths]
    start = time.perf_counter()
    for path, one in zip(paths, memory, strict=True):
        with path.open("rb", buffering=0) as file:
            view, at = memoryview(one.numpy().data), 0
            while count := file.readinto(view[at : at + PIECE]):
                at += count
    return time.perf_counter() - start, {}


def _open(folder: Path, quantize: Scheme | None) -> tuple[float, dict[str, int]]:
    from moe_llava.checkpoint.folder import read_config

    config = read_config(folder)
    before = resident_bytes()
    with Watch() as watch:
        start = time.perf_counter()
        model: MoeLlavaForConditionalGeneration | None
        if quantize:
            model = load_quantized(folder, config, quantize, torch.device("cpu"))
        else:
            model = load_weights(folder, config)
        seconds = time.perf_counter() - start
    assert model is not None
    sizes = {"weight_bytes": weight_bytes(model), "added_peak_bytes": watch.peak - before}
    return seconds, sizes | {"process_peak_bytes": peak_bytes(torch.device("cpu"))}


class Watch:
    """The most resident memory, mapped files included, that this process holds meanwhile; sampled, on Linux."""

    def __enter__(self) -> "Watch":
        self.peak, self._ended = resident_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.peak = max(self.peak, resident_bytes())

    def _sample(self) -> None:
        while not self._ended.wait(0.01):
            self.peak = max(self.peak, resident_bytes())
