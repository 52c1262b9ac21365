"""Tensors of a folder, one after the other, into a model that was built without memory."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig

from moe_llava.checkpoint.stream import DTYPES, Spec, num_bytes
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration

PATTERN = "model*.safetensors"


def shards(folder: Path, pattern: str = PATTERN) -> list[Path]:
    """The files of a checkpoint's weights.

    Raises:
        ValueError: there are none.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise ValueError(f"{folder} holds no weights ({pattern}): give the folder of a finished stage.")
    return found


def read_tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors in the order of `read_specs`, each read when its turn comes."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in read_specs([path]):
                yield name, file.get_tensor(name)


def read_specs(files: list[Path]) -> dict[str, Spec]:
    """Names, shapes and types from the heads of the files, in the order in which they lie there."""
    specs: dict[str, Spec] = {}
    for path in files:
        with path.open("rb") as file:
            head: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        head.pop("__metadata__", None)
        for name, entry in sorted(head.items(), key=lambda item: item[1]["data_offsets"]):
            specs[name] = (tuple(entry["shape"]), DTYPES[entry["dtype"]])
    return specs


def empty_model(config: MoeLlavaConfig) -> MoeLlavaForConditionalGeneration:
    """A model whose parameters have shapes and no memory; its buffers are real."""
    with init_empty_weights(include_buffers=False):
        return MoeLlavaForConditionalGeneration(config).eval()


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor` the model's parameter or buffer of that name."""
    module_name, _, own = name.rpartition(".")
    module = model.get_submodule(module_name)
    if own in module._parameters:
        module._parameters[own] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    else:
        module._buffers[own] = tensor


def load_weights(
    folder: Path, config: MoeLlavaConfig, dtype: torch.dtype | None = None
) -> MoeLlavaForConditionalGeneration | None:
    """The model of a folder whose tensors have the model's own names and shapes; None of any other.

    Bytes are read once, straight into the memory of the parameters, by several threads.

    Args:
        dtype: to convert floating-point tensors to, one after the other.
    """
    files = shards(folder)
    specs = read_specs(files)
    model = empty_model(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    if wanted != {name: shape for name, (shape, _) in specs.items()}:
        return None
    for name, tensor in _read_all(files):
        put(model, name, tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor)
    if config.tie_word_embeddings:
        model.tie_weights()
    return finish(model, folder)


def _read_all(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    with ThreadPoolExecutor(THREADS) as pool:
        for path in files:
            with path.open("rb", buffering=0) as file:
                head = 8 + int.from_bytes(file.read(8), "little")
                jobs, at = [], head
                for name, spec in read_specs([path]).items():
                    jobs.append((name, pool.submit(_read_one, file.fileno(), at, spec)))
                    at += num_bytes(spec)
                for name, job in jobs:
                    yield name, job.result()


def _read_one(file: int, offset: int, spec: Spec) -> Tensor:
    tensor = torch.empty(spec[0], dtype=spec[1])
    memory = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else memoryview(b"")
    done = 0
    while done < len(memory):
        count = os.preadv(file, [memory[done : done + PIECE]], offset + done)
        if not count:
            raise ValueError("A file of weights is shorter than it says: it was not copied or written to its end.")
        done += count
    return tensor


THREADS = 2  # memory takes no more
PIECE = 2**24


def finish(model: MoeLlavaForConditionalGeneration, folder: Path) -> MoeLlavaForConditionalGeneration:
    """Tie what is tied, and read how the model generates.

    Raises:
        ValueError: tensors are missing; the names are listed.
    """
    empty = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if empty:
        raise ValueError(f"{folder} lacks {len(empty)} tensors: {', '.join(sorted(empty)[:5])} ...")
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model
