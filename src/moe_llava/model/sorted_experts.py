"""The experts' products on a CPU: rows sorted by expert, one matrix product an expert, one weighted sum at the end.

Registered with transformers as `sorted_mm`, the default. Elsewhere than on a CPU, and inside `torch.compile`, it hands
over to transformers' own kernels. Measured against them in docs/performance.md.
"""

from collections.abc import Iterator
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

NAME = "sorted_mm"


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
    if hidden_states.device.type != "cpu" or torch.compiler.is_compiling() or self._is_expert_parallel:
        return _elsewhere(self, top_k_index)(self, hidden_states, top_k_index, top_k_weights)
    weights = _weights(self)
    if torch.is_autocast_enabled("cpu"):
        hidden_states, weights = _cast(hidden_states, weights, torch.get_autocast_dtype("cpu"))
    tensors = (hidden_states, top_k_weights, *weights[:4])
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return _SortedExperts.apply(hidden_states, top_k_weights, *weights, top_k_index)
    if len(hidden_states) == 1:
        return _one_token(hidden_states, top_k_weights, weights, top_k_index)
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
    tensors = [tensor if tensor is None else tensor.to(dtype) for tensor in weights[:4]]
    return hidden_states.to(dtype), Weights(*tensors, weights.act_fn, weights.has_gate)  # type: ignore[arg-type]


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
    if not has_gate:
        return act_fn(inner)
    gate, up = inner.chunk(2, dim=-1)
    return act_fn(gate).mul_(up)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(rows, weight.t(), out=out)
    else:
        torch.addmm(bias, rows, weight.t(), out=out)


def _one_token(
    hidden_states: Float[Tensor, "1 width"],
    top_k_weights: Float[Tensor, "1 k"],
    weights: Weights,
    top_k_index: Int[Tensor, "1 k"],
) -> Float[Tensor, "1 width"]:
    """Each weight of the chosen experts is read once, and nothing else is."""
    output = None
    for expert, weight in zip(top_k_index[0].tolist(), top_k_weights[0].tolist(), strict=True):
        inner = F.linear(hidden_states, weights.up[expert], None if weights.up_bias is None else weights.up_bias[expert])
        inner = activate(inner, weights.act_fn, weights.has_gate)
        bias = None if weights.down_bias is None else weights.down_bias[expert]
        result = F.linear(inner, weights.down[expert], bias).float() * weight
        output = result if output is None else output.add_(result)
    assert output is not None
    return output.to(hidden_states.dtype)


def _outputs(hidden_states: Float[Tensor, "token width"], weights: Weights, plan: Plan) -> Float[Tensor, "row width"]:
    """Output of each row's expert, unweighted."""
    outputs = hidden_states.new_empty(len(plan.rows), hidden_states.shape[1])
    inner = hidden_states.new_empty(max(plan.counts), weights.up.shape[1])
    up_bias = weights.up_bias if weights.up_bias is not None else [None] * len(weights.up)
    down_bias = weights.down_bias if weights.down_bias is not None else [None] * len(weights.up)
    for expert, group in plan.groups():
        rows = hidden_states[plan.rows[group]]
        one = inner[: len(rows)]
        _product(rows, weights.up[expert], up_bias[expert], one)
        _product(activate(one, weights.act_fn, weights.has_gate), weights.down[expert], down_bias[expert], outputs[group])
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
        plan = sort_rows(top_k_index, len(up))
        inner = hidden_states.new_empty(len(plan.rows), up.shape[1])
        outputs = hidden_states.new_empty(len(plan.rows), hidden_states.shape[1])
        for expert, group in plan.groups():
            rows = hidden_states[plan.rows[group]]
            _product(rows, up[expert], None if up_bias is None else up_bias[expert], inner[group])
            activated = activate(inner[group], act_fn, has_gate)
            _product(activated, down[expert], None if down_bias is None else down_bias[expert], outputs[group])
        ctx.save_for_backward(hidden_states, top_k_weights, up, up_bias, down, down_bias, inner)
        ctx.plan, ctx.act_fn, ctx.has_gate = plan, act_fn, has_gate
        return combine(outputs, plan.places, top_k_weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden_states, top_k_weights, up, up_bias, down, down_bias, inner = ctx.saved_tensors
        plan = ctx.plan
        grad = grad.contiguous()
        row_weights = torch.empty(len(plan.rows), 1, dtype=grad.dtype)
        row_weights[plan.places.reshape(-1), 0] = top_k_weights.reshape(-1).to(grad.dtype)
        by_weight = torch.empty(len(plan.rows), dtype=torch.float32)
        grads = [None if tensor is None else torch.empty_like(tensor) for tensor in (up, up_bias, down, down_bias)]
        g_up, g_up_bias, g_down, g_down_bias = grads
        g_rows = torch.empty(len(plan.rows), hidden_states.shape[1], dtype=grad.dtype)
        for tensor in grads:
            if tensor is not None:
                for expert, count in enumerate(plan.counts):
                    if not count:
                        tensor[expert].zero_()
        for expert, group in plan.groups():
            g_out = grad[plan.rows[group]]
            activated, slopes = _activate_again(inner[group], ctx.act_fn, ctx.has_gate)
            g_activated = torch.mm(g_out, down[expert])
            weight = row_weights[group]
            products = (activated * g_activated).sum(dim=-1, dtype=torch.float32)
            if down_bias is not None:
                products += torch.mv(g_out, down_bias[expert]).float()
            by_weight[group] = products
            g_activated.mul_(weight)
            g_out.mul_(weight)
            torch.mm(g_out.t(), activated, out=g_down[expert])
            if g_down_bias is not None:
                torch.sum(g_out, dim=0, out=g_down_bias[expert])
            g_inner = slopes(g_activated)
            rows = hidden_states[plan.rows[group]]
            torch.mm(g_inner.t(), rows, out=g_up[expert])
            if g_up_bias is not None:
                torch.sum(g_inner, dim=0, out=g_up_bias[expert])
            torch.mm(g_inner, up[expert], out=g_rows[group])
        g_hidden = combine(g_rows, plan.places, None)
        g_weights = by_weight[plan.places].to(top_k_weights.dtype)
        return g_hidden, g_weights, g_up, g_up_bias, g_down, g_down_bias, None, None, None


def _activate_again(inner: Tensor, act_fn: nn.Module, has_gate: bool) -> Any:
    """The activated rows, and a function from their gradient to that of `inner`."""
    gate, up = inner.chunk(2, dim=-1) if has_gate else (inner, None)
    with torch.enable_grad():
        gate = gate.detach().requires_grad_()
        opened = act_fn(gate)
    activated = opened.detach()
    if up is not None:
        activated = activated * up

    def slopes(g_activated: Tensor) -> Tensor:
        if up is None:
            return torch.autograd.grad(opened, gate, g_activated)[0]
        g_inner = torch.empty_like(inner)
        width = up.shape[1]
        torch.mul(g_activated, opened.detach(), out=g_inner[:, width:])
        g_inner[:, :width] = torch.autograd.grad(opened, gate, g_activated.mul_(up))[0]
        return g_inner

    return activated, slopes
