"""Products through oneDNN, which torch brings for CPUs: in fp32 up to twice as fast as the BLAS that `mm` calls."""

import torch
from jaxtyping import Float
from torch import Tensor

FEW_ROWS = 4  # below, the reordering of the second matrix costs more than the product


def available() -> bool:
    """Whether this torch has it."""
    return torch.backends.mkldnn.is_available()


def linear(rows: Float[Tensor, "row column"], weight: Tensor, bias: Tensor | None = None) -> Float[Tensor, "row out"]:
    """`rows @ weight.T + bias`; `weight` may have been packed."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def pack(weight: Float[Tensor, "out column"]) -> Tensor:
    """A copy of the weight in the blocks in which oneDNN reads it; of use to `linear` alone."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, PROMPT)


PROMPT = 640  # rows for which the blocks are chosen: they serve one row as well


def product(left: Float[Tensor, "a b"], right: Float[Tensor, "b c"], out: Tensor | None = None) -> Float[Tensor, "a c"]:
    """`left @ right`, by whichever library is the quicker."""
    if left.dtype != torch.float32 or min(*left.shape, *right.shape) < FEW_ROWS or not available():
        return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)
    result = linear(left, right.t())
    return result if out is None else out.copy_(result)
