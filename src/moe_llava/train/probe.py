"""Bytes that training keeps alive beyond weights, gradients and optimizer: measured on small twins of a model's parts.

What autograd keeps of a layer are tensors of `tokens x width`. So a layer of an eighth of the heads and widths, run
forwards and backwards on the CPU, tells the bytes of the whole one, for every family, precision and choice of what
trains, without a formula for each. Tensors shaped like a weight (gradients, casts) are not counted: they are known.
"""

import math
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModel, PreTrainedConfig

from moe_llava.model import MoeLlavaConfig
from moe_llava.model.config import moe_layers
from moe_llava.model.decoder import build_decoder
from moe_llava.recipe import Group, Stage

TOKENS = 127  # a prime, so that no tensor of activations is shaped like a weight
_POSITIONS, _VOCABULARY = 64, 2048


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors made while it is on, now and at most, but for those of the shapes to `ignore`."""

    def __init__(self, ignore: Collection[tuple[int, ...]] = ()) -> None:
        super().__init__()
        self.ignore = ignore
        self.now = 0
        self.most = 0
        self._seen: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, result)
        return result

    def leave_out(self, tensor: Tensor) -> None:
        """Do not count a tensor that was made before."""
        self._seen.setdefault(tensor.untyped_storage(), 0)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = 0 if tensor.shape in self.ignore else storage.nbytes()
        self._seen[storage] = size
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class LayerBytes:
    """Of one layer, a token: what is `kept` from forward to backward, and what is `passing` at its turn in backward."""

    kept: float
    passing: float


@dataclass(frozen=True)
class Probe:
    """What one micro-batch keeps alive.

    Attributes:
        dense, sparse: of one layer; `None` where the decoder has no such layer.
        head: per supervised position and entry of the vocabulary.
        image: per image, of a tower that trains; 0 for a frozen one, whose features are computed before.
    """

    dense: LayerBytes | None
    sparse: LayerBytes | None
    head: float
    image: float


def probe(config: MoeLlavaConfig, stage: Stage) -> Probe:
    """Measure small twins of the model that a stage trains."""
    text_config = config.text_config
    sparse, total = len(moe_layers(text_config)), text_config.num_hidden_layers
    with torch.random.fork_rng(devices=[]):
        return Probe(
            dense=_layer(text_config, stage, sparse=False) if sparse < total else None,
            sparse=_layer(text_config, stage, sparse=True) if sparse else None,
            head=_head(text_config, stage),
            image=_tower(config, stage) if "vision_tower" in stage.train and config.vision_config else 0.0,
        )


def shrunk(text_config: PreTrainedConfig, num_layers: int, *, sparse: bool) -> tuple[PreTrainedConfig, int]:
    """The configuration of `num_layers` layers of one kind, and by what its heads and widths are divided."""
    table = text_config.to_dict()
    heads, key_values = table["num_attention_heads"], table.get("num_key_value_heads") or table["num_attention_heads"]
    divisor = math.gcd(heads, key_values, table["hidden_size"] // 8, table["intermediate_size"] // 8)
    table |= {name: table[name] // divisor for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    table |= {"num_key_value_heads": key_values // divisor, "num_hidden_layers": num_layers, "vocab_size": 32}
    table |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    table["moe_layers"] = list(range(num_layers)) if sparse else None
    if isinstance(kinds := table.get("layer_types"), list):
        table["layer_types"] = kinds[:num_layers]
    return type(text_config)(**table), divisor


def _layer(text_config: PreTrainedConfig, stage: Stage, *, sparse: bool) -> LayerBytes:
    one, two = (_decoder_peak(text_config, stage, count, sparse=sparse) for count in (1, 2))
    return LayerBytes(kept=(two - one) / TOKENS, passing=max(2 * one - two, 0) / TOKENS)


def _decoder_peak(text_config: PreTrainedConfig, stage: Stage, num_layers: int, *, sparse: bool) -> float:
    config, divisor = shrunk(text_config, num_layers, sparse=sparse)
    decoder = build_decoder(config).train()
    _freeze(decoder, stage)
    if stage.gradient_checkpointing:
        decoder.activation_checkpointing_enable({"use_reentrant": False})
    embeddings = torch.randn(1, TOKENS, config.hidden_size, requires_grad=True)
    mask = torch.ones(1, TOKENS, dtype=torch.long)

    def run() -> Tensor:
        kwargs = {"output_router_logits": True} if sparse else {}
        return decoder(inputs_embeds=embeddings, attention_mask=mask, use_cache=False, **kwargs).last_hidden_state

    return divisor * _peak(decoder, run, stage, [embeddings])


def _freeze(decoder: nn.Module, stage: Stage) -> None:
    """Gradients only where the stage trains, as `train.stages.assign_groups` decides."""
    everything: set[Group] = {"language_model"}
    for name, parameter in decoder.named_parameters():
        groups = everything | ({"ffn"} if ".mlp." in name else set())
        if ".mlp.experts." in name:
            groups = everything | {"experts"}
        elif ".mlp.gate.weight" in name:
            groups = everything | {"router"}
        parameter.requires_grad_(bool(groups & stage.train.keys()))


def _head(text_config: PreTrainedConfig, stage: Stage) -> float:
    """Logits, their cast to fp32 and the cross-entropy, of positions that are supervised."""
    width = 32
    head = nn.Linear(width, _VOCABULARY, bias=False)
    head.requires_grad_("language_model" in stage.train)
    hidden = torch.randn(_POSITIONS, width, requires_grad=True)
    targets = torch.zeros(_POSITIONS, dtype=torch.long)
    peak = _peak(head, lambda: F.cross_entropy(head(hidden).float(), targets, reduction="sum"), stage, [hidden])
    return peak / (_POSITIONS * _VOCABULARY)


def _tower(config: MoeLlavaConfig, stage: Stage) -> float:
    """One image through a tower that trains. Towers of equal layers are measured at one and two of them."""
    vision = config.vision_config
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.randn(1, 3, height, width)

    def peak(layers: int | None) -> float:
        table = vision.to_dict() | ({} if layers is None else {"num_hidden_layers": layers})
        tower = AutoModel.from_config(type(vision)(**table)).train()
        return _peak(tower, lambda: tower(pixels).last_hidden_state, stage, [pixels])

    total = getattr(vision, "num_hidden_layers", None)
    if not isinstance(total, int) or total < 3:
        return peak(None)
    one, two = peak(1), peak(2)
    return one + (total - 1) * (two - one)


def _peak(module: nn.Module, run: Callable[[], Tensor], stage: Stage, inputs: list[Tensor]) -> float:
    """Most bytes alive in one pass forwards and backwards, without weights and their gradients."""
    live = LiveBytes({shape for one in module.parameters() for shape in (one.shape, one.shape[::-1])})
    for tensor in (*module.parameters(), *module.buffers(), *inputs):
        live.leave_out(tensor)
    with live, _precision(stage):
        output = run()
        output.float().sum().backward()
    return float(live.most)


@contextmanager
def _precision(stage: Stage) -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=stage.precision == "bf16"):
        yield
