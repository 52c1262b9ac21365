"""A step of stage III: forward, loss, backward and AdamW, beside dense stage II, the peers and the floor.

One decoder of the published width and few layers, random image and text embeddings. What trains is what stage III
trains: feed-forward networks, experts, routers. The floor is the same decoder in which each mixture is one dense
network on `top_k` times the rows; *stage II* is the dense decoder, all of which trains.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from moe_llava.bench.block import KERNELS, dtype_name
from moe_llava.bench.models import random_tensors
from moe_llava.bench.peer import DeepSpeed
from moe_llava.bench.timing import Run, interleave, timed
from moe_llava.checkpoint.weights import empty_model, put
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.config import moe_layers, sparse_text_config
from moe_llava.model.decoder import decoder_layers
from moe_llava.recipe import Group, Trainable
from moe_llava.train.stages import prepare

RATE = Trainable(lr=2e-5)
STAGE_3: dict[Group, Trainable] = {"ffn": RATE, "experts": RATE, "router": RATE}
STAGE_2: dict[Group, Trainable] = {"language_model": RATE}


@dataclass(frozen=True)
class Decoder:
    """Shape of the decoder that takes the steps."""

    width: int = 1024
    inner: int = 2816
    layers: int = 4
    heads: int = 16
    vocabulary: int = 8192
    experts: int = 4
    top_k: int = 2

    def text_config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(
            "llama",
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
        )


class FloorFeedForward(nn.Module):
    """The work of a mixture without routing: one dense network on `top_k` times the rows."""

    def __init__(self, dense: nn.Module, top_k: int) -> None:
        super().__init__()
        self.dense, self.top_k = dense, top_k

    def forward(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.repeat(self.top_k, 1, 1)
        return self.dense(rows).unflatten(0, (self.top_k, -1)).mean(dim=0)


def measure(
    decoder: Decoder,
    batches: Sequence[tuple[int, int]],
    *,
    rounds: int,
    dtype: torch.dtype,
    device: torch.device,
    deepspeed: DeepSpeed | None = None,
    budget: float = float("inf"),
    progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Seconds and tokens a second of a step; `batches` are rows and their lengths."""
    rows = []
    for count, length in batches:
        progress(f"train: {count} x {length} tokens, {dtype_name(dtype)}")
        runs = _runs(decoder, count, length, dtype, device)
        if deepspeed is not None:
            text = decoder.text_config()
            deepspeed.build(
                "step",
                text_config=text.to_diff_dict() | {"model_type": "llama"},
                moe_layers=list(range(0, decoder.layers, 2)),
                experts=decoder.experts,
                k=decoder.top_k,
                rows=count,
                length=length,
                dtype=dtype_name(dtype),
            )
            runs["deepspeed"] = deepspeed.run
        timings = interleave(runs, rounds, budget=budget)
        table = timings.as_dict("floor")
        for name in table:
            table[name]["tokens_per_second"] = timings.spread(name).median ** -1 * count * length
            table[name]["ratio_to_ours"] = timings.ratio(name, "ours").as_dict()
        rows.append({"rows": count, "length": length, "dtype": dtype_name(dtype), "runs": table})
        del runs
        gc.collect()
    return rows


def _runs(decoder: Decoder, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> dict[str, Run]:
    dense = decoder.text_config()
    sparse = sparse_text_config(dense, num_experts=decoder.experts, top_k=decoder.top_k)
    ours = _model(sparse, dtype, device)
    floor = _model(dense, dtype, device)
    for index in moe_layers(sparse):
        layer = decoder_layers(floor.model.language_model)[index]
        layer.mlp = FloorFeedForward(layer.mlp, decoder.top_k)
    runs = {"floor": _step(floor, {"ffn": RATE}, rows, length)}
    step = _step(ours, STAGE_3, rows, length)
    for name, kernel in KERNELS.items():
        runs[name] = _with_kernel(ours, kernel, step)
    runs["dense stage II"] = _step(_model(dense, dtype, device), STAGE_2, rows, length)
    return runs


def _model(text: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> MoeLlavaForConditionalGeneration:
    model = empty_model(MoeLlavaConfig(text_config=text.to_dict(), image_token_id=text.vocab_size))
    for name, tensor in random_tensors(model, dtype):
        put(model, name, tensor)
    return model.to(device).train()  # type: ignore[arg-type]


def _step(model: MoeLlavaForConditionalGeneration, trains: dict[Group, Trainable], rows: int, length: int) -> Run:
    groups, _ = prepare(model, trains)
    parameters = [parameter for group in groups for parameter in group.parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    text, device = model.config.text_config, model.device
    # The projector's output: gradients go down to it, as they do in stage III.
    embedded = torch.randn(rows, length, text.hidden_size, device=device).to(model.dtype).requires_grad_()
    labels = torch.randint(text.vocab_size, (rows, length), device=device)

    def run() -> None:
        model(inputs_embeds=embedded, labels=labels, skip_logits=True, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        embedded.grad = None

    return timed(run)


def _with_kernel(model: MoeLlavaForConditionalGeneration, kernel: str, step: Run) -> Run:
    def run() -> float:
        model.set_experts_implementation({"text_config": kernel})
        return step()

    return run
