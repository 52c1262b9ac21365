"""A step of stage III: forward, loss, backward and AdamW, beside dense stage II, the peers and the floor.

One decoder of the published width and few layers, random image and text embeddings. What trains is what stage III
trains: feed-forward networks, experts, routers. The floor is the same decoder in which each mixture is one dense
network on `top_k` times the rows; *stage II* is the dense decoder, all of which trains.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from moe_llava.bench.block import KERNELS, Shape, dtype_name
from moe_llava.bench.memory import fresh, peak_bytes, resident_bytes
from moe_llava.bench.models import random_tensors
from moe_llava.bench.peer import DeepSpeed
from moe_llava.bench.timing import Run, interleave, timed
from moe_llava.checkpoint.weights import empty_model, put
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.decoder import decoder_layers
from moe_llava.recipe import Group, Trainable
from moe_llava.train.stages import prepare

RATE = Trainable(lr=2e-5)
STAGE_3: dict[Group, Trainable] = {"ffn": RATE, "experts": RATE, "router": RATE}
STAGE_2: dict[Group, Trainable] = {"language_model": RATE}
STEPS = ("floor", *KERNELS, "dense stage II")


@dataclass(frozen=True)
class Decoder:
    """The decoder that takes the steps, every other layer of `shape`."""

    shape: Shape = field(default_factory=Shape)
    layers: int = 4
    heads: int = 16
    vocabulary: int = 8192

    def dense_config(self) -> PreTrainedConfig:
        return self.shape.dense_config(
            num_hidden_layers=self.layers, num_attention_heads=self.heads, vocab_size=self.vocabulary
        )


@dataclass(frozen=True)
class Batch:
    """What a step reads: `rows` of `length` tokens."""

    rows: int
    length: int
    dtype: torch.dtype

    def facts(self) -> dict[str, Any]:
        return {"rows": self.rows, "length": self.length, "dtype": dtype_name(self.dtype)}


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
    batches: Sequence[Batch],
    *,
    rounds: int,
    device: torch.device,
    deepspeed: DeepSpeed | None = None,
    budget: float = float("inf"),
    progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Seconds, tokens a second and peak memory of a step."""
    rows = []
    for batch in batches:
        facts = batch.facts()
        progress(f"train: {batch.rows} x {batch.length} tokens, {facts['dtype']}")
        steps = dict(zip(STEPS, _steps(decoder, batch, device, STEPS), strict=True))
        if deepspeed is not None:
            deepspeed.build("step", **_job(decoder, batch))
            steps["deepspeed"] = deepspeed.run
        timings = interleave(steps, rounds, budget=budget)
        table = timings.as_dict("floor")
        del steps
        gc.collect()
        for name in table:
            table[name]["tokens_per_second"] = timings.spread(name).median ** -1 * batch.rows * batch.length
            table[name]["ratio_to_ours"] = timings.ratio(name, "ours").as_dict()
            if name != "deepspeed":
                table[name]["peak_bytes"] = fresh(step_bytes, decoder, batch, name, str(device))
        if deepspeed is not None:
            table["deepspeed"]["peak_bytes"] = deepspeed.peak_bytes("step", **_job(decoder, batch))
        rows.append(facts | {"runs": table})
    return rows


def step_bytes(decoder: Decoder, batch: Batch, name: str, device_name: str) -> int:
    """Most bytes that one kind of step holds: model, gradients, optimizer and activations. For a process of its own."""
    device = torch.device(device_name)
    before = 0 if device.type == "cuda" else resident_bytes()
    [step] = _steps(decoder, batch, device, [name])
    step()
    step()
    return peak_bytes(device) - before


def _job(decoder: Decoder, batch: Batch) -> dict[str, Any]:
    """The same step, as DeepSpeed's process is told of it."""
    shape = decoder.shape
    return {
        "text_config": decoder.dense_config().to_diff_dict() | {"model_type": "llama"},
        "moe_layers": list(range(0, decoder.layers, 2)),
        "experts": shape.experts,
        "k": shape.top_k,
        **batch.facts(),
    }


def _steps(decoder: Decoder, batch: Batch, device: torch.device, names: Sequence[str]) -> list[Run]:
    """The steps of these names; all kernels share one model."""
    dense = decoder.dense_config()
    steps, ours = [], None
    for name in names:
        if name in KERNELS:
            if ours is None:
                model = _model(decoder.shape.sparse(dense), batch.dtype, device)
                ours = model, _step(model, STAGE_3, batch)
            steps.append(_with_kernel(*ours, KERNELS[name]))
        elif name == "floor":
            model = _model(dense, batch.dtype, device)
            for index in range(0, decoder.layers, 2):
                layer = decoder_layers(model.model.language_model)[index]
                layer.mlp = FloorFeedForward(layer.mlp, decoder.shape.top_k)
            steps.append(_step(model, {"ffn": RATE}, batch))
        else:
            steps.append(_step(_model(dense, batch.dtype, device), STAGE_2, batch))
    return steps


def _model(text: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> MoeLlavaForConditionalGeneration:
    model = empty_model(MoeLlavaConfig(text_config=text.to_dict(), image_token_id=text.vocab_size))
    for name, tensor in random_tensors(model, dtype):
        put(model, name, tensor)
    return model.to(device).train()  # type: ignore[arg-type]


def _step(model: MoeLlavaForConditionalGeneration, trains: dict[Group, Trainable], batch: Batch) -> Run:
    groups, _ = prepare(model, trains)
    parameters = [parameter for group in groups for parameter in group.parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    text, device = model.config.text_config, model.device
    # The projector's output: gradients go down to it, as they do in stage III.
    embedded = torch.randn(batch.rows, batch.length, text.hidden_size, device=device).to(model.dtype).requires_grad_()
    labels = torch.randint(text.vocab_size, (batch.rows, batch.length), device=device)

    def run() -> None:
        model(inputs_embeds=embedded, labels=labels, skip_logits=True, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        embedded.grad = None

    return timed(run)


def _with_kernel(model: MoeLlavaForConditionalGeneration, step: Run, kernel: str) -> Run:
    def run() -> float:
        model.set_experts_implementation({"text_config": kernel})
        return step()

    return run
