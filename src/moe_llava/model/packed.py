"""A model whose matrices lie in the blocks in which a CPU's kernels read them: for answers, not for training.

Half as fast again to decode in bf16 and twice in fp32, at the same memory; what leaves the model's place is its weights
under their names, so it cannot be saved, trained or taken apart.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_llava.model import decode_attention, onednn
from moe_llava.model.experts import Experts
from moe_llava.model.laid_out import LaidOutExperts
from moe_llava.model.moe_llava import MoeLlavaForConditionalGeneration


class PackedLinear(nn.Module):
    """A linear map with a packed weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._weight = onednn.pack(linear.weight.detach())

    def forward(self, hidden_states: Float[Tensor, "... column"]) -> Float[Tensor, "... row"]:
        rows = hidden_states.reshape(-1, self.in_features)
        return onednn.linear(rows, self._weight, self.bias).view(*hidden_states.shape[:-1], self.out_features)


class PackedExperts(LaidOutExperts):
    """`Experts` with packed weights."""

    def __init__(self, experts: Experts) -> None:
        super().__init__(experts)
        self._weights: dict[str, list[Tensor]] = {}
        for name, parameter in list(experts.named_parameters(recurse=False)):
            if parameter.ndim == 3:
                self._weights[name] = [onednn.pack(matrix) for matrix in parameter.detach()]
                delattr(experts, name)

    def multiply(
        self, name: str, expert: int, rows: Float[Tensor, "row column"], bias: Tensor | None
    ) -> Float[Tensor, "row width"]:
        return onednn.linear(rows, self._weights[name][expert], bias)


def packs(model: nn.Module) -> bool:
    """Whether this model's matrices can be packed: on a CPU, in fp32 or bf16, by a torch that has oneDNN."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    known = all(one.device.type == "cpu" and one.dtype in (torch.float32, torch.bfloat16) for one in parameters)
    return known and onednn.available()


@torch.no_grad()
def pack_modules(model: MoeLlavaForConditionalGeneration) -> None:
    """Pack a model's linear maps and experts in place, one after the other."""
    assert packs(model)
    decode_attention.use_in(model.model.language_model)
    # Names, not modules: a list of those would keep every matrix until the last is packed.
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear or isinstance(module, Experts)]
    for name in names:
        parent, _, child = name.rpartition(".")
        module = model.get_submodule(name)
        new = PackedExperts(module) if isinstance(module, Experts) else PackedLinear(cast(nn.Linear, module))
        setattr(model.get_submodule(parent), child, new)
