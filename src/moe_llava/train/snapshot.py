"""What a run needs to go on: trained weights and optimizer, by PyTorch's distributed checkpoint.

Each process writes its share, under the parameters' full names. So what one layout wrote, another reads, in any number
of processes.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._pytree import tree_map

_OPTIONS = StateDictOptions(ignore_frozen_params=True, flatten_optimizer_state_dict=True, strict=False)


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write trained weights and optimizer. All processes call.

    Raises:
        OSError: it cannot be written.
    """
    state = {
        "model": get_model_state_dict(model, options=_OPTIONS),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_OPTIONS),
    }
    with _quiet(), _as_os_error(folder):
        checkpoint.save(tree_map(_contiguous, state), checkpoint_id=folder, no_dist=not distributed.is_initialized())


def load_weights(folder: Path, model: nn.Module) -> None:
    """Read trained weights back into `model`.

    Raises:
        ValueError: the checkpoint holds other parameters than the model trains.
        OSError: it cannot be read.
    """
    current = get_model_state_dict(model, options=_OPTIONS)
    saved = {name.removeprefix("model.") for name in _names(folder) if name.startswith("model.")}
    if saved != current.keys():
        raise ValueError(
            f"{folder} holds other parameters than this stage trains: the recipe has changed. "
            "Restore it, or train into another output."
        )
    set_model_state_dict(model, _read(folder, "model", current), options=_OPTIONS)


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read the optimizer's state back, whatever layout wrote it.

    Raises:
        OSError: it cannot be read.
    """
    current = get_optimizer_state_dict(model, optimizer, options=_OPTIONS)
    set_optimizer_state_dict(model, optimizer, _read(folder, "optimizer", current), options=_OPTIONS)


def _names(folder: Path) -> list[str]:
    with _as_os_error(folder):
        return list(checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata)


def _read(folder: Path, key: str, current: dict[str, Any]) -> dict[str, Any]:
    target = tree_map(_contiguous, current)
    with _quiet(), _as_os_error(folder):
        checkpoint.load({key: target}, checkpoint_id=folder, no_dist=not distributed.is_initialized())
    return tree_map(_placed_as, target, current)


def _contiguous(value: Any) -> Any:
    """A share of interleaved rows (experts under FSDP and expert parallelism) as one block, which is all that the
    format can name."""
    if not isinstance(value, DTensor):
        return value
    placements = [Shard(one.dim) if isinstance(one, _StridedShard) else one for one in value.placements]
    return value if placements == list(value.placements) else value.redistribute(placements=placements)


def _placed_as(value: Any, like: Any) -> Any:
    if isinstance(value, DTensor) and value.placements != like.placements:
        return value.redistribute(placements=like.placements)
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remark that one process saves alone, which is what it is meant to do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextmanager
def _as_os_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except checkpoint.CheckpointException as error:  # derives from BaseException
        cause = next(iter(error.failures.values()))[0]
        raise OSError(f"{folder}: {cause}") from error
