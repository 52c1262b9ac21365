"""The experts' products on a CPU: rows sorted by expert, one matrix product an expert, one weighted sum at the end.

Registered with transformers as `sorted_mm`, the default. Elsewhere than on a CPU, inside `torch.compile` and for
a single token it hands over to transformers' own kernels. Measured against them in docs/performance.md.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.moe import (
    ALL_EXPERTS_FUNCTIONS,
    batched_mm_experts_forward,
    grouped_mm_experts_forward,
)

from moe_llava.model.onednn import product

NAME = "sorted_mm"
MANY_ROWS = 16  # below, packing the weight is not what a product in bf16 spends its time on


class Weights(NamedTuple):
    """Stacked tensors of `Experts`, and its activation."""

    up: Float[Tensor, "expert rows width"]
    up_bias: Float[Tensor, "expert rows"] | None
    down: Float[Tensor, "expert width inner"]
    down_bias: Float[Tensor, "expert width"] | None
    act_fn: nn.Module
    has_gate: bool


class Plan(NamedTuple):
    """Rows sorted by expert: `rows` is the token of each, `places` where each choice `(token, k)` went."""

    rows: Int[Tensor, "row"]
    places: Int[Tensor, "token k"]
    counts: list[int]

    def groups(self) -> Iterator[tuple[int, slice]]:
        """Experts that have rows, and which."""
        start = 0
        for expert, count in enumerate(self.counts):
            if count:
                yield expert, slice(start, start + count)
            start += count


def sorted_mm_experts_forward(
    self: Any,
    hidden_states: Float[Tensor, "token width"],
    top_k_index: Int[Tensor, "token k"],
    top_k_weights: Float[Tensor, "token k"],
) -> Float[Tensor, "token width"]:
    """What the experts' interface of transformers asks for."""
    mixed = torch.is_autocast_enabled("cpu")
    away = hidden_states.device.type != "cpu" or torch.compiler.is_compiling() or self._is_expert_parallel
    if away or (len(hidden_states) == 1 and not mixed):
        return _elsewhere(self, top_k_index)(self, hidden_states, top_k_index, top_k_weights)
    weights = _weights(self)
    if mixed:
        hidden_states, weights = _cast(hidden_states, weights, torch.get_autocast_dtype("cpu"))
    tensors = (hidden_states, top_k_weights, *weights[:4])
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return _SortedExperts.apply(hidden_states, top_k_weights, *weights, top_k_index)
    plan = sort_rows(top_k_index, len(weights.up))
    return combine(_outputs(hidden_states, weights, plan), plan.places, top_k_weights)


ALL_EXPERTS_FUNCTIONS.register(NAME, sorted_mm_experts_forward)


def _elsewhere(experts: Any, top_k_index: Int[Tensor, "token k"]) -> Any:
    """transformers' kernel for this device and shape: grouped products take no fp64, and rows of whole 16 bytes."""
    stacked = (getattr(experts, experts.input_name), experts.down_proj)
    if any(weight.dtype == torch.float64 or weight.shape[-1] * weight.itemsize % 16 for weight in stacked):
        return type(experts).forward.__wrapped__
    if stacked[0].device.type != "cpu" and not torch.is_grad_enabled() and top_k_index.numel() <= experts.num_experts:
        return batched_mm_experts_forward  # as transformers' generate() does while it decodes
    return grouped_mm_experts_forward


def _weights(experts: Any) -> Weights:
    name = experts.input_name
    return Weights(
        getattr(experts, name),
        getattr(experts, f"{name}_bias", None),
        experts.down_proj,
        getattr(experts, "down_proj_bias", None),
        experts.act_fn,
        experts.has_gate,
    )


def _cast(hidden_states: Tensor, weights: Weights, dtype: torch.dtype) -> tuple[Tensor, Weights]:
    up, up_bias, down, down_bias = (tensor if tensor is None else tensor.to(dtype) for tensor in weights[:4])
    assert up is not None and down is not None
    return hidden_states.to(dtype), Weights(up, up_bias, down, down_bias, weights.act_fn, weights.has_gate)


def sort_rows(top_k_index: Int[Tensor, "token k"], num_experts: int) -> Plan:
    choices = top_k_index.reshape(-1)
    order = choices.argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    counts = torch.bincount(choices, minlength=num_experts).tolist()
    return Plan(order // top_k_index.shape[1], places.view_as(top_k_index), counts)


def combine(
    outputs: Float[Tensor, "row width"], places: Int[Tensor, "token k"], top_k_weights: Float[Tensor, "token k"] | None
) -> Float[Tensor, "token width"]:
    """Of each token, the weighted sum of its rows."""
    weights = None if top_k_weights is None else top_k_weights.to(outputs.dtype)
    return F.embedding_bag(places, outputs, mode="sum", per_sample_weights=weights)


def activate(inner: Float[Tensor, "row rows"], act_fn: nn.Module, has_gate: bool) -> Float[Tensor, "row inner"]:
    """The activation of a plain or gated feed-forward network; may overwrite `inner`."""
    if not has_gate:
        return act_fn(inner)
    gate, up = inner.chunk(2, dim=-1)
    return act_fn(gate).mul_(up)


def _columns(
    rows: Float[Tensor, "row width"], weight: Float[Tensor, "rows width"], bias: Tensor | None
) -> Float[Tensor, "rows row"]:
    """`weight @ rows.T + bias`: the weight on the left, where kernels read it as it lies and need not pack it."""
    if len(rows) < MANY_ROWS and weight.dtype != torch.float32:
        return F.linear(rows, weight, bias).t()
    columns = product(weight, rows.t())
    return columns if bias is None else columns.add_(bias[:, None])


def _activate_columns(inner: Float[Tensor, "rows row"], act_fn: nn.Module, has_gate: bool) -> Tensor:
    if not has_gate:
        return act_fn(inner)
    gate, up = inner.chunk(2)
    return act_fn(gate).mul_(up)


def _of(bias: Tensor | None, expert: int) -> Tensor | None:
    return None if bias is None else bias[expert]


def _outputs(
    hidden_states: Float[Tensor, "token width"], weights: Weights, plan: Plan, keep: list[Tensor] | None = None
) -> Float[Tensor, "row width"]:
    """Output of each row's expert, unweighted; what backward needs goes to `keep`."""
    outputs = hidden_states.new_empty(len(plan.rows), hidden_states.shape[1])
    for expert, group in plan.groups():
        inner = _columns(hidden_states[plan.rows[group]], weights.up[expert], _of(weights.up_bias, expert))
        if keep is not None:
            keep.append(inner)
        activated = _activate_columns(inner, weights.act_fn, weights.has_gate)
        outputs[group] = _columns(activated.t(), weights.down[expert], _of(weights.down_bias, expert)).t()
    return outputs


class _SortedExperts(torch.autograd.Function):
    """The same with gradients. Keeps the inner width before the activation, and computes the rest again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        top_k_weights: Tensor,
        up: Tensor,
        up_bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None,
        act_fn: nn.Module,
        has_gate: bool,
        top_k_index: Tensor,
    ) -> Tensor:
        weights, plan = Weights(up, up_bias, down, down_bias, act_fn, has_gate), sort_rows(top_k_index, len(up))
        inner: list[Tensor] = []
        outputs = _outputs(hidden_states, weights, plan, inner)
        ctx.save_for_backward(hidden_states, top_k_weights, up, up_bias, down, down_bias, *inner)
        ctx.plan, ctx.act_fn, ctx.has_gate = plan, act_fn, has_gate
        return combine(outputs, plan.places, top_k_weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden_states, top_k_weights, *tensors = ctx.saved_tensors
        up, up_bias, down, down_bias, *inner = tensors
        weights = Weights(up, up_bias, down, down_bias, ctx.act_fn, ctx.has_gate)
        plan, grad = ctx.plan, grad.contiguous()
        row_weights = torch.empty(len(plan.rows), dtype=grad.dtype)
        row_weights[plan.places.reshape(-1)] = top_k_weights.reshape(-1).to(grad.dtype)
        gradients = _Gradients.empty(weights, plan, ctx.needs_input_grad[2:6])
        g_rows = torch.empty(len(plan.rows), hidden_states.shape[1], dtype=grad.dtype)
        products = torch.empty(len(plan.rows), dtype=torch.promote_types(grad.dtype, torch.float32))
        for (expert, group), one in zip(plan.groups(), inner, strict=True):
            g_outputs = grad[plan.rows[group]]
            activated, slopes = _activate_again(one, ctx.act_fn, ctx.has_gate)
            g_activated = product(weights.down[expert].t(), g_outputs.t())
            products[group] = (activated * g_activated).sum(dim=0, dtype=products.dtype)
            if weights.down_bias is not None:
                products[group] += torch.mv(g_outputs, weights.down_bias[expert])
            g_inner = slopes(g_activated.mul_(row_weights[group]))
            g_outputs.mul_(row_weights[group, None])
            gradients.fill(expert, g_outputs, activated, g_inner, hidden_states, plan.rows[group])
            product(g_inner.t(), weights.up[expert], out=g_rows[group])
        g_hidden = combine(g_rows, plan.places, None)
        g_weights = products[plan.places].to(top_k_weights.dtype)
        return g_hidden, g_weights, *gradients, None, None, None


class _Gradients(NamedTuple):
    """Gradients of the stacked tensors; None where none is asked for."""

    up: Tensor | None
    up_bias: Tensor | None
    down: Tensor | None
    down_bias: Tensor | None

    @classmethod
    def empty(cls, weights: Weights, plan: Plan, needed: tuple[bool, ...]) -> "_Gradients":
        """Zero for experts without rows, and nothing yet for the others."""
        tensors = [torch.empty_like(one) if need else None for one, need in zip(weights[:4], needed, strict=True)]  # type: ignore[arg-type]
        for tensor in tensors:
            for expert, count in enumerate(plan.counts):
                if tensor is not None and not count:
                    tensor[expert].zero_()
        return cls(*tensors)

    def fill(
        self, expert: int, g_outputs: Tensor, activated: Tensor, g_inner: Tensor, hidden_states: Tensor, rows: Tensor
    ) -> None:
        if self.down is not None:
            product(g_outputs.t(), activated.t(), out=self.down[expert])
        if self.down_bias is not None:
            torch.sum(g_outputs, dim=0, out=self.down_bias[expert])
        if self.up is not None:
            product(g_inner, hidden_states[rows], out=self.up[expert])
        if self.up_bias is not None:
            torch.sum(g_inner, dim=1, out=self.up_bias[expert])


def _activate_again(
    inner: Float[Tensor, "rows row"], act_fn: nn.Module, has_gate: bool
) -> tuple[Float[Tensor, "inner row"], Callable[[Tensor], Tensor]]:
    """The activated columns, and a function from their gradient, which it may overwrite, to that of `inner`."""
    gate, up = inner.chunk(2) if has_gate else (inner, None)
    with torch.enable_grad():
        gate = gate.detach().requires_grad_()
        opened = act_fn(gate)
    if up is None:
        return opened.detach(), lambda g_activated: torch.autograd.grad(opened, gate, g_activated)[0]

    def slopes(g_activated: Tensor) -> Tensor:
        g_inner = torch.empty_like(inner)
        g_gate, g_up = g_inner.chunk(2)
        torch.mul(g_activated, opened.detach(), out=g_up)
        g_gate.copy_(torch.autograd.grad(opened, gate, g_activated.mul_(up))[0])
        return g_inner

    return opened.detach() * up, slopes
