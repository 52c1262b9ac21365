"""Safetensors files whose tensors are written one after the other, so that one tensor at a time is in memory."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

SHARD_BYTES = 5 * 10**9
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
Spec = tuple[tuple[int, ...], torch.dtype]


def write_model(
    folder: Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int = SHARD_BYTES,
    stem: str = "model",
) -> None:
    """Write `tensors`, which come in the order of `specs`, as `{stem}*.safetensors` and their index.

    The format (https://github.com/huggingface/safetensors) puts names, shapes and offsets first; all of them are known
    before the first tensor is.
    """
    shards = _shards(specs, shard_bytes)
    count = len(shards)
    names = [f"{stem}.safetensors"]
    if count > 1:
        names = [f"{stem}-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    stream = iter(tensors)
    for file_name, shard in zip(names, shards, strict=True):
        with (folder / file_name).open("wb") as file:
            file.write(_header({name: specs[name] for name in shard}))
            for name in shard:
                given, tensor = next(stream)
                assert given == name and (tuple(tensor.shape), tensor.dtype) == specs[name], (given, name)
                # Not numpy's `tofile`, whose error does not say that the disk is full.
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                del tensor
    if count > 1:
        places = {name: file_name for file_name, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(map(num_bytes, specs.values()))
        (folder / f"{stem}.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)
        )


def num_bytes(spec: Spec) -> int:
    """Bytes of a tensor."""
    shape, dtype = spec
    return torch.Size(shape).numel() * dtype.itemsize


def _shards(specs: Mapping[str, Spec], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + num_bytes(spec) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes(spec)
    return shards


def _header(specs: Mapping[str, Spec]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, dtype) in specs.items():
        end = offset + num_bytes((shape, dtype))
        table[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
