"""How the cost of a forward pass grows: with experts, tokens, images and layers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moe_llava.bench.block import Case, Shape
from moe_llava.bench.block import measure as measure_block
from moe_llava.bench.models import random_model, shape_config
from moe_llava.bench.timing import Run, interleave, timed
from moe_llava.generate.batch import Sequences
from moe_llava.model import MoeLlavaForConditionalGeneration

EXPERTS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (64, 256, 1024, 4096)
IMAGES = (1, 2, 3)
LAYERS = (2, 4, 8)


def measure(
    *,
    rounds: int,
    dtype: torch.dtype,
    device: torch.device,
    shape: str = "stablelm-1.6b",
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, list[dict[str, Any]]]:
    """A table for each axis; the layer's width in the first two is 512, so that 64 experts fit any machine."""
    layer: dict[str, list[dict[str, Any]]] = {"experts": [], "tokens": []}
    for experts in EXPERTS:
        progress(f"growth: {experts} experts")
        row = measure_block(
            Shape(512, 1408, experts, min(2, experts)), [Case(576, dtype, False)], rounds=rounds, device=device
        )
        layer["experts"].append(_row(experts, row[0]))
    for tokens in TOKENS:
        progress(f"growth: {tokens} tokens")
        row = measure_block(Shape(512, 1408), [Case(tokens, dtype, False)], rounds=rounds, device=device)
        layer["tokens"].append(_row(tokens, row[0]))
    return layer | _whole(shape, rounds, dtype, device, progress)


def _row(value: int, row: dict[str, Any]) -> dict[str, Any]:
    ours = row["runs"]["ours"]
    return {"value": value, "seconds": ours["seconds"], "ratio_to_floor": ours["ratio"]}


def _whole(
    shape: str, rounds: int, dtype: torch.dtype, device: torch.device, progress: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    tables: dict[str, list[dict[str, Any]]] = {"images": [], "layers": []}
    for layers in LAYERS:
        progress(f"growth: {layers} layers")
        model = random_model(shape_config(shape, experts=4, layers=layers), dtype, device)
        counts = IMAGES if layers == LAYERS[0] else IMAGES[:1]
        runs: dict[str, Run] = {str(count): timed(_answer(model, count, dtype)) for count in counts}
        timings = interleave(runs, rounds)
        for count in counts:
            if layers == LAYERS[0]:
                tables["images"].append({"value": count, "seconds": timings.spread(str(count)).as_dict()})
        tables["layers"].append({"value": layers, "seconds": timings.spread("1").as_dict()})
    return tables


def _answer(model: MoeLlavaForConditionalGeneration, images: int, dtype: torch.dtype) -> Callable[[], None]:
    size = model.config.vision_config.image_size
    pixels = torch.randn(images, 3, size, size, device=model.device).to(dtype)
    ids = [[*([model.config.image_token_id] * model.config.image_seq_length * images), *range(1, 65)]]

    @torch.inference_mode()
    def run() -> None:
        tokens: list[Tensor] = model.get_image_features(pixels).pooler_output  # type: ignore[assignment]
        Sequences(model, 1).read(ids, tokens).argmax().item()

    return run
