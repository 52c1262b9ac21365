"""Matrices in 8 or 4 bits, and products with them.

`int8`: one scale a row, and activations in 8 bits too, one scale a token, so that products are integer products.
`int4`: groups of up to 128 numbers of a row share a scale and an offset; activations stay as they are. On a CPU torch's
own packed kernels multiply; elsewhere a matrix is expanded when it is used.
"""

import functools
from typing import Literal, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

Scheme = Literal["int8", "int4"]
GROUPS = (128, 64, 32)  # what torch's 4-bit kernel on a CPU takes, without 256
LANES = 16  # and rows in multiples of this


def check_scheme(scheme: str | None) -> None:
    """Refuse what is no scheme.

    Raises:
        ValueError: it is neither None nor one of `Scheme`.
    """
    if scheme is not None and scheme not in get_args(Scheme):
        raise ValueError(f"quantize = {scheme!r} is unknown: use int8 or int4.")


def group_size(width: int) -> int | None:
    """How many numbers of a row share a scale in `int4`; None where no group divides the row."""
    return next((size for size in GROUPS if width % size == 0), None)


def encode(weight: Float[Tensor, "... row column"], scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Weights -> numbers and scales, as a checkpoint keeps them.

    `int8`: `(..., row, column)` int8, and fp32 scales `(..., row)`. `int4`: `(..., row, column / 2)` uint8, the even
    column in the low half, and `(..., column / group, row, 2)`: the scale of `number - 8` and an offset, in bf16.
    """
    if weight.ndim == 3:
        parts = [encode(matrix, scheme) for matrix in weight]
        return torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])
    if scheme == "int8":
        scales = (weight.abs().amax(dim=-1).float() / 127).clamp(min=1e-12)
        return (weight.float() / scales[:, None]).round_().to(torch.int8), scales
    size = group_size(weight.shape[1])
    assert size is not None, weight.shape
    groups = weight.float().unflatten(1, (-1, size))
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    # Rounded to what is kept before they are used: the numbers then make up for it.
    scale = ((high - low) / 15).clamp(min=1e-8).bfloat16().float()
    offset = (low + 8 * scale).bfloat16().float()
    numbers = ((groups - offset) / scale + 8).round_().clamp_(0, 15).to(torch.uint8).flatten(1)
    packed = numbers[:, ::2] | (numbers[:, 1::2] << 4)
    return packed, torch.cat([scale, offset], dim=-1).transpose(0, 1).contiguous().bfloat16()


def numbers_of(packed: Integer[Tensor, "row half"]) -> Integer[Tensor, "row column"]:
    """The 4-bit numbers, one in each byte."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)


def decode(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Float[Tensor, "row column"]:
    """Numbers and scales of one matrix -> weights."""
    if numbers.dtype == torch.int8:
        return (numbers * scales[:, None]).to(dtype)
    columns = 2 * numbers.shape[1]
    groups = numbers_of(numbers).float().unflatten(1, (-1, columns // len(scales)))
    scale, offset = scales.float().transpose(0, 1).unsqueeze(-2).unbind(-1)
    return ((groups - 8) * scale + offset).flatten(1).to(dtype)


def pack(numbers: Tensor) -> Tensor:
    """Numbers as a checkpoint keeps them -> as torch's kernel on this CPU reads them."""
    if numbers.dtype == torch.int8:
        return numbers
    if numbers.ndim == 3:
        return torch.stack([pack(matrix) for matrix in numbers])
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers_of(numbers).int(), 1)


def block(numbers: Integer[Tensor, "row column"]) -> Tensor:
    """8-bit numbers in oneDNN's blocks, where the processor multiplies bytes without saturating; else as they are."""
    blocks = torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()
    return torch.ops.onednn.qlinear_prepack(numbers, None) if blocks else numbers


ZERO = 128  # what stands for zero in bytes without a sign


@functools.cache
def _zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int32)


@functools.cache
def _rounding() -> Tensor:
    """Added before numbers are cut to bytes. Of one dimension: a number alone would not make a sum fp32."""
    return torch.tensor([ZERO + 0.5])


def to_bytes(row: Float[Tensor, "1 column"]) -> tuple[Integer[Tensor, "1 column"], float]:
    """One row in bytes around `ZERO`, and their scale: in few operations, of which each costs more than it computes."""
    low, high = row.aminmax()
    scale = max(high.item() / 127, -low.item() / 127, 1e-12)
    return torch.add(_rounding(), row, alpha=1 / scale).to(torch.uint8), scale


def multiply(
    rows: Float[Tensor, "token column"], numbers: Tensor, scales: Tensor, bias: Tensor | None
) -> Float[Tensor, "token row"]:
    """`rows @ weight.T + bias` with one encoded matrix."""
    if rows.device.type != "cpu":
        return F.linear(rows, decode(numbers, scales, rows.dtype), bias)
    if numbers.is_mkldnn and len(rows) == 1:
        integers, scale = to_bytes(rows)
        dtype = rows.dtype if rows.dtype == torch.bfloat16 else torch.float32
        output = _integer_product(integers, scale, numbers, scales, dtype).to(rows.dtype)
    elif numbers.dtype == torch.int8:
        token_scales = (rows.abs().amax(dim=-1, keepdim=True).float() / 127).clamp_(min=1e-12)
        integers = (rows / token_scales).round_()
        if numbers.is_mkldnn:
            shifted = (integers + ZERO).to(torch.uint8)
            output = _integer_product(shifted, 1.0, numbers, scales, torch.float32)
            output = output.mul_(token_scales).to(rows.dtype)
        else:
            output = (torch._int_mm(integers.to(torch.int8), numbers.t()) * token_scales).mul_(scales).to(rows.dtype)
    else:
        group = rows.shape[1] // scales.shape[0]
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        output = product(rows.bfloat16().contiguous(), numbers, group, scales).to(rows.dtype)
    return output if bias is None else output.add_(bias)


def _integer_product(
    rows: Integer[Tensor, "token column"], scale: float, numbers: Tensor, scales: Tensor, dtype: torch.dtype
) -> Float[Tensor, "token row"]:
    """Bytes around `ZERO` times a matrix in oneDNN's blocks."""
    zeros = _zeros(len(scales))
    return torch.ops.onednn.qlinear_pointwise(
        rows, scale, ZERO, numbers, scales, zeros, None, 1.0, 0, dtype, "none", [], ""
    )
