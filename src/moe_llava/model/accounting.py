"""Parameters, activated parameters, FLOPs and bytes, from shapes alone."""

from dataclasses import dataclass

import torch
from torch import nn

from moe_llava.model.config import MoeLlavaConfig, moe_layers
from moe_llava.model.experts import Experts
from moe_llava.model.moe_llava import MoeLlavaForConditionalGeneration
from moe_llava.model.router import TopKRouter


@dataclass(frozen=True)
class Accounting:
    """Sizes of one model. Parameters are counted on the model's own modules; a tied head counts once.

    Attributes:
        parts: parameters by part: `vision_tower`, `projector`, `embeddings`, `attention_and_norms`, `ffn` (dense
            feed-forward networks), `experts`, `routers`, `lm_head`.
        activated_experts: the part of `experts` that one token uses.
    """

    parts: dict[str, int]
    activated_experts: int
    num_layers: int
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    image_tokens: int
    hidden_size: int
    key_value_width: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def activated(self) -> int:
        """Parameters that one token of a prompt with an image uses, the tower included."""
        return self.total - self.parts["experts"] + self.activated_experts

    @property
    def language_total(self) -> int:
        """Without vision tower and projector: what papers of this field print."""
        return self.total - self.parts["vision_tower"] - self.parts["projector"]

    @property
    def language_activated(self) -> int:
        return self.language_total - self.parts["experts"] + self.activated_experts

    def flops_per_token(self, context: int) -> int:
        """Multiply-adds times two to decode one token after `context` others: matrix products and attention."""
        embeddings = 0 if self.parts["lm_head"] == 0 else self.parts["embeddings"]
        matrices = self.language_activated - embeddings
        attention = 4 * self.num_layers * self.hidden_size * context
        return 2 * matrices + attention

    def training_flops_per_token(self, length: float) -> float:
        """Of one forward pass over a sequence of `length` tokens, a token: attention sees half of them on average.

        The tower is not counted: a frozen one's features are computed before.
        """
        matrices = self.flops_per_token(0) + 2 * self.parts["projector"]
        return matrices + 2 * self.num_layers * self.hidden_size * length

    def cache_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        """Keys and values that one token leaves in the cache."""
        return 2 * self.num_layers * self.key_value_width * bytes_per_number

    def as_dict(self) -> dict[str, object]:
        """JSON-ready summary."""
        return {
            "parameters": {"total": self.total, "activated": self.activated},
            "language_parameters": {"total": self.language_total, "activated": self.language_activated},
            "parts": self.parts,
            "layers": {"total": self.num_layers, "moe": list(self.moe_layers)},
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "image_tokens": self.image_tokens,
            "flops_per_token_at_2048": self.flops_per_token(2048),
            "cache_bytes_per_token_bf16": self.cache_bytes_per_token(),
            "weight_bytes_bf16": 2 * self.total,
        }


def account(config: MoeLlavaConfig) -> Accounting:
    """Count a model from its configuration, on the meta device: no weights are needed or allocated."""
    with torch.device("meta"):
        model = MoeLlavaForConditionalGeneration(MoeLlavaConfig(**config.to_dict()))
    if config.tie_word_embeddings:
        model.tie_weights()
    return account_model(model)


def account_model(model: MoeLlavaForConditionalGeneration) -> Accounting:
    """Count a model that exists."""
    text_config = model.config.text_config
    owners = part_of_parameters(model)
    parts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        parts[owners[name]] += parameter.numel()
    sparse = bool(moe_layers(text_config))
    num_experts, top_k = (text_config.num_experts, text_config.num_experts_per_tok) if sparse else (1, 1)
    heads = text_config.num_attention_heads
    head_width = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    return Accounting(
        parts=parts,
        activated_experts=parts["experts"] * top_k // num_experts,
        num_layers=text_config.num_hidden_layers,
        moe_layers=moe_layers(text_config),
        num_experts=num_experts,
        top_k=top_k,
        image_tokens=model.config.image_seq_length,
        hidden_size=text_config.hidden_size,
        key_value_width=head_width * (getattr(text_config, "num_key_value_heads", None) or heads),
    )


PARTS = ("vision_tower", "projector", "embeddings", "attention_and_norms", "ffn", "experts", "routers", "lm_head")


def part_of_parameters(model: MoeLlavaForConditionalGeneration) -> dict[str, str]:
    """Name of each parameter -> its part (one of `PARTS`), by the module that holds it."""
    owners: dict[str, str] = {}

    def own(module: nn.Module | None, part: str) -> None:
        for parameter in module.parameters() if module is not None else ():
            of_id.setdefault(id(parameter), part)

    of_id: dict[int, str] = {}
    decoder = model.model.language_model
    own(getattr(model.model, "vision_tower", None), "vision_tower")
    own(getattr(model.model, "multi_modal_projector", None), "projector")
    own(decoder.get_input_embeddings(), "embeddings")
    own(model.lm_head, "lm_head")
    for module in decoder.modules():
        if isinstance(module, Experts):
            own(module, "experts")
        elif isinstance(module, TopKRouter):
            own(module, "routers")
    for layer in decoder.layers:
        own(layer.mlp, "ffn")
    own(decoder, "attention_and_norms")
    for name, parameter in model.named_parameters():
        owners[name] = of_id[id(parameter)]
    return owners
