"""One sparse layer: ours, transformers' kernels and DeepSpeed's, beside the floor.

The floor is the dense feed-forward network on `top_k` times the rows: the same products, nothing routed. All others
include their router.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from moe_llava.bench.peer import DeepSpeed
from moe_llava.bench.timing import Run, interleave, timed
from moe_llava.model import sorted_experts
from moe_llava.model.config import sparse_text_config
from moe_llava.model.decoder import SparseFeedForward
from moe_llava.model.packed import PackedExperts, packs

KERNELS = {"ours": sorted_experts.NAME, "grouped_mm": "grouped_mm", "eager": "eager"}
COLD_BYTES = 2**28  # few tokens meet weights that no cache holds, as in a whole model


@dataclass(frozen=True)
class Shape:
    """Widths of a layer, and its mixture."""

    width: int = 1024
    inner: int = 2816
    experts: int = 4
    top_k: int = 2

    def dense_config(self, **more: Any) -> PreTrainedConfig:
        """A decoder of these widths."""
        return AutoConfig.for_model("llama", hidden_size=self.width, intermediate_size=self.inner, **more)

    def sparse(self, dense: PreTrainedConfig) -> PreTrainedConfig:
        """The same decoder with the mixture in every other layer."""
        return sparse_text_config(dense, num_experts=self.experts, top_k=self.top_k)


@dataclass(frozen=True)
class Case:
    """One row of the table. `train`: gradients are computed too."""

    tokens: int
    dtype: torch.dtype
    train: bool

    @property
    def name(self) -> str:
        return f"{self.tokens} tokens, {dtype_name(self.dtype)}, {self.direction}"

    @property
    def direction(self) -> str:
        return "forward + backward" if self.train else "forward"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(
    shape: Shape,
    cases: Sequence[Case],
    *,
    rounds: int,
    device: torch.device,
    deepspeed: DeepSpeed | None = None,
    budget: float = float("inf"),
    progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Seconds of every kernel in every case, and their ratios to the floor."""
    rows = []
    for case in cases:
        progress(f"block: {case.name}")
        copies = _copies(shape, case)
        runs = _runs(shape, case, copies, device)
        if deepspeed is not None:
            widths = {"width": shape.width, "inner": shape.inner, "experts": shape.experts, "k": shape.top_k}
            dtype = dtype_name(case.dtype)
            deepspeed.build("layer", tokens=case.tokens, dtype=dtype, train=case.train, copies=copies, **widths)
            runs["deepspeed"] = deepspeed.run
        timings = interleave(runs, rounds, budget=budget)
        table = timings.as_dict("floor")
        for name in ("ours", "packed") if "reading" in runs else ():
            if name in runs:
                table[name]["ratio_to_reading"] = timings.ratio(name, "reading").as_dict()
        facts = {"tokens": case.tokens, "dtype": dtype_name(case.dtype), "direction": case.direction}
        rows.append(facts | {"layers": copies, "runs": table})
        del runs
        gc.collect()
    return rows


def _copies(shape: Shape, case: Case) -> int:
    """Layers that run one after the other, so that those of a single token are not in a cache."""
    bytes_read = shape.top_k * 3 * shape.width * shape.inner * case.dtype.itemsize
    return min(64, -(-COLD_BYTES // bytes_read)) if case.tokens == 1 and not case.train else 1


def _runs(shape: Shape, case: Case, copies: int, device: torch.device) -> dict[str, Run]:
    config = shape.sparse(shape.dense_config(num_attention_heads=8, vocab_size=8))
    torch.manual_seed(0)
    blocks, floors = [], []
    for _ in range(copies):
        dense = LlamaMLP(config)
        block = SparseFeedForward(config, dense)
        block.gate.reset_parameters()
        block.experts.reset_parameters()
        blocks.append(block.to(device, case.dtype))
        floors.append(dense.to(device, case.dtype))
    tokens = torch.randn(1, case.tokens, shape.width, device=device).to(case.dtype)
    repeated = tokens.repeat(1, shape.top_k, 1)
    runs = {"floor": timed(_work(floors, repeated, case.train))}
    for name, kernel in KERNELS.items():
        runs[name] = timed(_work(blocks, tokens, case.train, partial(_use, config, kernel)))
    if not case.train and packs(blocks[0]):
        runs["packed"] = timed(_work([_packed(config, block) for block in blocks], tokens, False))
    if case.tokens == 1 and not case.train:
        runs["reading"] = timed(_reading(blocks, shape.top_k))
    return runs


def _packed(config: PreTrainedConfig, block: SparseFeedForward) -> SparseFeedForward:
    """The same block for answers; the other keeps its weights."""
    copied = SparseFeedForward(config, LlamaMLP(config))
    copied.load_state_dict(block.state_dict())
    copied.experts = PackedExperts(copied.experts.to(block.gate.weight.dtype))  # type: ignore[assignment]
    return copied


def _use(config: PreTrainedConfig, kernel: str) -> None:
    config._experts_implementation = kernel


def _work(
    modules: Sequence[nn.Module], tokens: Tensor, train: bool, before: Callable[[], None] = lambda: None
) -> Callable[[], None]:
    tokens = tokens.clone().requires_grad_(train)
    grad = torch.randn_like(tokens)

    def forward() -> None:
        before()
        with torch.inference_mode():
            for module in modules:
                module(tokens)

    def both() -> None:
        before()
        for module in modules:
            module(tokens).backward(grad)
            for parameter in [*module.parameters(), tokens]:
                parameter.grad = None

    return both if train else forward


def _reading(blocks: Sequence[SparseFeedForward], top_k: int) -> Callable[[], None]:
    """Read as many bytes as `top_k` experts of each block hold, and do no more with them."""
    parts = [weight[:top_k].view(torch.int64) for block in blocks for weight in block.experts.parameters()]

    def read() -> None:
        with torch.inference_mode():
            for part in parts:
                part.sum()

    return read
