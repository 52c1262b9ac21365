"""E feed-forward networks held as stacked 3-D weights, in the layout of transformers' experts interface."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.integrations.moe import use_experts_implementation


@dataclass(frozen=True)
class FeedForwardLayout:
    """Names of the projections of one kind of dense feed-forward network.

    A gated network has `gate` and `up` apart, or both in `fused` (gate first); a plain one has only `up`.
    """

    down: str
    up: str | None = None
    gate: str | None = None
    fused: str | None = None

    @property
    def is_gated(self) -> bool:
        return self.gate is not None or self.fused is not None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Projections into the inner width, in the order in which their rows are stacked."""
        return tuple(name for name in (self.fused, self.gate, self.up) if name)


LAYOUTS = (
    FeedForwardLayout(gate="gate_proj", up="up_proj", down="down_proj"),
    FeedForwardLayout(fused="gate_up_proj", down="down_proj"),
    FeedForwardLayout(up="up_proj", down="down_proj"),
    FeedForwardLayout(up="fc1", down="fc2"),
    FeedForwardLayout(up="c_fc", down="c_proj"),
    FeedForwardLayout(up="dense_h_to_4h", down="dense_4h_to_h"),
)
ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation")


def layout_of(mlp: nn.Module) -> FeedForwardLayout:
    """Recognise a dense feed-forward network by the linear projections it holds.

    Raises:
        ValueError: none of the known layouts fits.
    """
    linears = {name for name, child in mlp.named_children() if isinstance(child, nn.Linear)}
    for layout in LAYOUTS:
        if linears == {*layout.inputs, layout.down}:
            return layout
    raise ValueError(
        f"{type(mlp).__name__} cannot be made sparse: it holds the projections {sorted(linears)}; known layouts are "
        + "; ".join(", ".join((*layout.inputs, layout.down)) for layout in LAYOUTS)
        + "."
    )


def activation_of(mlp: nn.Module) -> nn.Module:
    """The activation module of a dense feed-forward network."""
    for name in ACTIVATIONS:
        if isinstance(activation := getattr(mlp, name, None), nn.Module):
            return activation
    raise ValueError(f"{type(mlp).__name__} cannot be made sparse: no activation named {', '.join(ACTIVATIONS)}.")


@use_experts_implementation
class Experts(nn.Module):
    """`num_experts` copies of the shape of one dense feed-forward network.

    Weights: `gate_up_proj (E, 2I, H)` or, for a plain network, `up_proj (E, I, H)`; `down_proj (E, H, I)`; biases
    `(E, 2I)`, `(E, I)` and `(E, H)` where the dense network has them. The kernel is `config._experts_implementation`.
    """

    has_gate: bool
    has_bias: bool
    _apply_gate: Callable[[Tensor], Tensor]

    def __init__(self, config: PreTrainedConfig, dense: nn.Module) -> None:
        super().__init__()
        layout = layout_of(dense)
        down = dense.get_submodule(layout.down)
        assert isinstance(down, nn.Linear)
        width, inner = down.weight.shape
        self.num_experts = config.num_experts
        self.initializer_range = getattr(config, "initializer_range", 0.02)
        self.act_fn = activation_of(dense)
        self.input_name = "gate_up_proj" if layout.is_gated else "up_proj"
        rows = 2 * inner if layout.is_gated else inner
        shapes: dict[str, tuple[int, ...]] = {self.input_name: (rows, width), "down_proj": (width, inner)}
        if down.bias is not None:
            shapes |= {f"{self.input_name}_bias": (rows,), "down_proj_bias": (width,)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(self.num_experts, *shape)))

    def reset_parameters(self) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("_bias"):
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=self.initializer_range)

    def forward(
        self,
        hidden_states: Float[Tensor, "token width"],
        top_k_index: Int[Tensor, "token k"],
        top_k_weights: Float[Tensor, "token k"],
    ) -> Float[Tensor, "token width"]:
        """The plain loop over experts, for shapes and dtypes that no grouped kernel takes."""
        parameters = dict(self.named_parameters(recurse=False))
        names = (self.input_name, f"{self.input_name}_bias", "down_proj", "down_proj_bias")
        # One unbind a tensor: indexing expert by expert would make backward allocate a full gradient for each.
        rows = [parameters[name].unbind(0) if name in parameters else [None] * self.num_experts for name in names]
        output = torch.zeros_like(hidden_states, dtype=top_k_weights.dtype)
        for expert, (up, up_bias, down, down_bias) in enumerate(zip(*rows, strict=True)):
            token, slot = (top_k_index == expert).nonzero(as_tuple=True)
            inner = F.linear(hidden_states[token], up, up_bias)
            inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
            weighted = F.linear(inner, down, down_bias) * top_k_weights[token, slot, None]
            output = output.index_add(0, token, weighted.to(output.dtype))
        return output.to(hidden_states.dtype)


def build_experts(config: PreTrainedConfig, dense: nn.Module) -> Experts:
    """Experts with the shape of `dense`, empty."""
    experts = Experts(config, dense)
    experts.has_gate = layout_of(dense).is_gated
    experts.has_bias = hasattr(experts, "down_proj_bias")
    return experts


def stack_dense(
    dense: dict[str, Tensor], layout: FeedForwardLayout, num_experts: int
) -> dict[str, Float[Tensor, "expert ..."]]:
    """Tensors of one dense network, by name inside it (`up_proj.weight`), -> the tensors of `Experts`, each repeated.

    The repetition is a view that takes no memory until it is copied into a model.
    """
    stacked = {}
    for kind, suffix in (("weight", ""), ("bias", "_bias")):
        inputs = [dense[f"{name}.{kind}"] for name in layout.inputs if f"{name}.{kind}" in dense]
        if not inputs:
            continue
        up = "gate_up_proj" if layout.is_gated else "up_proj"
        stacked[up + suffix] = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
        stacked["down_proj" + suffix] = dense[f"{layout.down}.{kind}"]
    return {name: tensor.expand(num_experts, *tensor.shape) for name, tensor in stacked.items()}
