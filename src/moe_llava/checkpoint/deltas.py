"""A complete checkpoint whose experts are kept as one base and small differences (DeRS, 2503.01359).

Instead of `model.safetensors` the folder holds `deltas.safetensors`: each stacked tensor `NAME (expert, row, column)`
as `NAME.base`, the mean, and either `NAME.left (expert, row, rank)` and `NAME.right (expert, rank, column)`, or
`NAME.values` and `NAME.places (expert, kept)`, places counting along the rows of `base`. `load_model` opens it like any
other; transformers' `from_pretrained` refuses it, having no weights to read.
"""

import shutil
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.compose import load_state

FILE = "deltas.safetensors"
_BASE, _LEFT, _RIGHT, _VALUES, _PLACES = ".base", ".left", ".right", ".values", ".places"


def low_rank(stacked: Float[Tensor, "expert row column"], rank: int) -> dict[str, Tensor]:
    """The mean, and of each difference from it the best approximation of `rank`.

    Raises:
        ValueError: a rank that is less than one, or more than the matrices have.
    """
    most = min(stacked.shape[1:])
    if not 1 <= rank <= most:
        raise ValueError(f"rank {rank} is impossible: the experts' matrices allow 1 to {most}.")
    base = stacked[0] + (stacked - stacked[0]).mean(dim=0)
    left, values, right = torch.linalg.svd((stacked - base).float(), full_matrices=False)
    scaled = left[:, :, :rank] * values[:, None, :rank]
    return {_BASE: base, _LEFT: scaled.to(stacked.dtype), _RIGHT: right[:, :rank].to(stacked.dtype)}


def sparse(stacked: Float[Tensor, "expert row column"], share: float) -> dict[str, Tensor]:
    """The mean, and of each difference from it the `share` of its numbers that is largest in magnitude.

    Raises:
        ValueError: a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share} is impossible: give more than 0 and at most 1.")
    base = stacked[0] + (stacked - stacked[0]).mean(dim=0)
    differences = (stacked - base).flatten(1)
    places = differences.abs().topk(max(1, round(share * differences.shape[1])), dim=1).indices.sort(dim=1).values
    return {_BASE: base, _VALUES: differences.gather(1, places), _PLACES: places.to(torch.int32)}


def compress(
    model: MoeLlavaForConditionalGeneration, *, rank: int | None = None, share: float | None = None
) -> dict[str, Tensor]:
    """All tensors of a model, those of its experts as base and differences: by `rank`, or by `share`.

    Raises:
        ValueError: not exactly one of the two, or one that is impossible.
    """
    if (rank is None) == (share is None):
        raise ValueError("Give either a rank or a share of the differences to keep.")
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if ".mlp.experts." in name and tensor.ndim == 3:
            parts = low_rank(tensor, rank) if rank is not None else sparse(tensor, share or 0.0)
            tensors |= {name + suffix: part for suffix, part in parts.items()}
        else:
            tensors[name] = tensor
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def expand(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Back to the tensors of a model."""
    whole = {name: tensor for name, tensor in tensors.items() if not name.endswith(_SUFFIXES)}
    for name in [name.removesuffix(_BASE) for name in tensors if name.endswith(_BASE)]:
        base = tensors[name + _BASE]
        if name + _LEFT in tensors:
            whole[name] = base + tensors[name + _LEFT] @ tensors[name + _RIGHT]
        else:
            places, values = tensors[name + _PLACES].long(), tensors[name + _VALUES]
            differences = values.new_zeros(len(values), base.numel()).scatter_(1, places, values)
            whole[name] = base + differences.reshape(-1, *base.shape)
    return whole


_SUFFIXES = (_BASE, _LEFT, _RIGHT, _VALUES, _PLACES)


def is_compressed(folder: str | Path) -> bool:
    """Whether a checkpoint's experts are kept this way."""
    return (Path(folder) / FILE).is_file()


def load_compressed(
    folder: str | Path, config: MoeLlavaConfig, dtype: torch.dtype | str = "auto"
) -> MoeLlavaForConditionalGeneration:
    """The model of such a checkpoint, its experts expanded."""
    state = expand(load_file(Path(folder) / FILE))
    stored = next(tensor.dtype for name, tensor in state.items() if ".mlp.experts." in name)
    model = load_state(config, state, dtype=dtype if isinstance(dtype, torch.dtype) else stored)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def save_compressed(
    folder: Path, model: MoeLlavaForConditionalGeneration, processor: MoeLlavaProcessor, tensors: dict[str, Tensor]
) -> None:
    """Write a complete checkpoint with `tensors` (see `compress`) beside, then move it into `folder` file by file."""
    staging = folder / ".writing"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    model.config.save_pretrained(staging)
    assert model.generation_config is not None
    model.generation_config.save_pretrained(staging)
    processor.save_pretrained(staging)
    save_file(tensors, staging / FILE)
    for path in sorted(staging.iterdir()):
        path.replace(folder / path.name)
    staging.rmdir()
