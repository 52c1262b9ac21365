"""A model with encoded weights: linear maps, experts and embeddings. Routers, norms and convolutions stay as they are.

In a model of `int4` the vision tower and the embeddings take 8 bits, and so do experts and linear maps whose widths no
4-bit kernel takes.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_llava.model import decode_attention
from moe_llava.model.encoding import LANES, Scheme, block, encode, group_size, multiply
from moe_llava.model.experts import Experts
from moe_llava.model.laid_out import LaidOutExperts
from moe_llava.model.moe_llava import MoeLlavaForConditionalGeneration

SCALES = "_scales"


class QuantizedModule(nn.Module):
    """Holds encoded matrices as buffers, or laid out for a CPU's kernels, and then no longer as buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.packed_bytes = 0
        self._blocks: dict[str, list[Tensor]] = {}

    def lay_out(self) -> None:
        """Lay 8-bit matrices out in the blocks that oneDNN reads."""
        for name, numbers in list(self._buffers.items()):
            if numbers is None or name.endswith(SCALES) or numbers.dtype != torch.int8:
                continue
            matrices = numbers if numbers.ndim == 3 else numbers[None]
            self._blocks[name] = [block(matrix) for matrix in matrices]
            self.packed_bytes += numbers.nbytes
            self._buffers[name] = None

    def times(
        self, name: str, rows: Float[Tensor, "row column"], bias: Tensor | None, expert: int | None = None
    ) -> Float[Tensor, "row width"]:
        numbers, scales = getattr(self, name), getattr(self, name + SCALES)
        if numbers is None:
            numbers = self._blocks[name][expert or 0]
        elif expert is not None:
            numbers = numbers[expert]
        return multiply(rows, numbers, scales if expert is None else scales[expert], bias)


class QuantizedLinear(QuantizedModule):
    """A linear map with an encoded weight."""

    def __init__(self, linear: nn.Linear, scheme: Scheme) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        _register(self, "weight", linear.weight.shape, scheme)

    def forward(self, hidden_states: Float[Tensor, "... column"]) -> Float[Tensor, "... row"]:
        rows = hidden_states.reshape(-1, self.in_features)
        output = self.times("weight", rows, self.bias)
        return output.view(*hidden_states.shape[:-1], self.out_features)


class QuantizedEmbedding(nn.Module):
    """An embedding in 8 bits; only the rows that are looked up are expanded, to `dtype`."""

    def __init__(self, embedding: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.weight.shape
        self.dtype = dtype
        _register(self, "weight", embedding.weight.shape, "int8")

    weight: Tensor
    weight_scales: Tensor

    def forward(self, input_ids: Int[Tensor, "..."]) -> Float[Tensor, "... width"]:
        return (self.weight[input_ids] * self.weight_scales[input_ids].unsqueeze(-1)).to(self.dtype)


class QuantizedExperts(LaidOutExperts, QuantizedModule):
    """`Experts` with encoded weights."""

    def __init__(self, experts: Experts, scheme: Scheme) -> None:
        super().__init__(experts)
        for name, parameter in experts.named_parameters(recurse=False):
            if parameter.ndim == 3:
                _register(self, name, parameter.shape, scheme)

    def multiply(
        self, name: str, expert: int, rows: Float[Tensor, "row column"], bias: Tensor | None
    ) -> Float[Tensor, "row width"]:
        return self.times(name, rows, bias, expert)


def quantize_modules(model: MoeLlavaForConditionalGeneration, scheme: Scheme | str, dtype: torch.dtype) -> None:
    """Put quantised modules in the place of a model's own, empty: their tensors are buffers under the names of the
    weights, with `_scales` beside. The model may be on the meta device; `dtype` is that of its hidden states.
    """
    decode_attention.use_in(model.model.language_model)
    tower = {id(module) for module in getattr(model.model, "vision_tower", nn.Module()).modules()}
    for name, module in list(model.named_modules()):
        low: Scheme = "int8" if id(module) in tower else cast(Scheme, scheme)
        if type(module) is nn.Linear:  # sub-classes are read by others through their weight
            new: nn.Module = QuantizedLinear(module, _fitting(low, [module.weight]))
        elif isinstance(module, Experts):
            matrices = [weight for weight in module.parameters() if weight.ndim == 3]
            new = QuantizedExperts(module, _fitting(low, matrices))
        elif module is model.get_input_embeddings() and type(module) is nn.Embedding:
            new = QuantizedEmbedding(module, dtype)
        else:
            continue
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)


def lay_out(model: nn.Module) -> None:
    """Lay a model on a CPU out for its kernels."""
    for module in model.modules():
        if isinstance(module, QuantizedModule):
            module.lay_out()


def encode_for(buffer: Tensor, weight: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
    """Encode a weight as the quantised module asks that holds `buffer`."""
    return encode(weight, "int8" if buffer.dtype == torch.int8 else "int4")


def _fitting(scheme: Scheme, matrices: Sequence[Tensor]) -> Scheme:
    fits = all(group_size(matrix.shape[-1]) and matrix.shape[-2] % LANES == 0 for matrix in matrices)
    return scheme if fits else "int8"


def _register(module: nn.Module, name: str, shape: torch.Size, scheme: Scheme) -> None:
    *stack, rows, columns = shape
    if scheme == "int8":
        numbers = torch.empty(*stack, rows, columns, dtype=torch.int8, device="meta")
        scales = torch.empty(*stack, rows, device="meta")
    else:
        size = group_size(columns)
        assert size is not None
        numbers = torch.empty(*stack, rows, columns // 2, dtype=torch.uint8, device="meta")
        scales = torch.empty(*stack, columns // size, rows, 2, dtype=torch.bfloat16, device="meta")
    module.register_buffer(name, numbers)
    module.register_buffer(name + SCALES, scales)
