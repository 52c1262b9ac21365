"""Experts for answers, whose matrices are laid out for a processor and are parameters no longer."""

from jaxtyping import Float, Int
from torch import Tensor, nn, zeros_like

from moe_llava.model.experts import Experts
from moe_llava.model.sorted_experts import activate, combine, sort_rows


class LaidOutExperts(nn.Module):
    """What `Experts` computes, without gradients; a sub-class holds the matrices and multiplies with them."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.num_experts, self.input_name = experts.num_experts, experts.input_name
        self.has_gate, self.act_fn = experts.has_gate, experts.act_fn
        for name, parameter in experts.named_parameters(recurse=False):
            if parameter.ndim == 2:
                self.register_parameter(name, parameter)

    def multiply(
        self, name: str, expert: int, rows: Float[Tensor, "row column"], bias: Tensor | None
    ) -> Float[Tensor, "row width"]:
        """`rows @ weight.T + bias` with one expert's matrix of this name."""
        raise NotImplementedError

    def _product(self, name: str, expert: int, rows: Float[Tensor, "row column"]) -> Float[Tensor, "row width"]:
        bias = getattr(self, f"{name}_bias", None)
        return self.multiply(name, expert, rows, None if bias is None else bias[expert])

    def _run(self, expert: int, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        inner = self._product(self.input_name, expert, rows)
        return self._product("down_proj", expert, activate(inner, self.act_fn, self.has_gate))

    def forward(
        self,
        hidden_states: Float[Tensor, "token width"],
        top_k_index: Int[Tensor, "token k"],
        top_k_weights: Float[Tensor, "token k"],
    ) -> Float[Tensor, "token width"]:
        if len(hidden_states) == 1:  # needs no sorting
            total = zeros_like(hidden_states, dtype=top_k_weights.dtype)
            for expert, weight in zip(top_k_index[0].tolist(), top_k_weights[0].tolist(), strict=True):
                total.add_(self._run(expert, hidden_states), alpha=weight)
            return total.to(hidden_states.dtype)
        plan = sort_rows(top_k_index, self.num_experts)
        outputs = hidden_states.new_empty(len(plan.rows), hidden_states.shape[1])
        for expert, group in plan.groups():
            outputs[group] = self._run(expert, hidden_states[plan.rows[group]])
        return combine(outputs, plan.places, top_k_weights)
