"""Checkpoints in 8 or 4 bits: quantised as they are read, tensor by tensor, or written that way and read again.

A written one holds `quantized.safetensors` instead of `model.safetensors`: the tensors of the quantised model under
their names (see `moe_llava.model.quantized`), in the layout of `moe_llava.model.encoding.encode`.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_llava.checkpoint.stream import Spec, write_model
from moe_llava.checkpoint.weights import PATTERN, empty_model, finish, put, read_specs, read_tensors, shards
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.encoding import Scheme, check_scheme, pack
from moe_llava.model.quantized import SCALES, encode_for, lay_out, quantize_modules

SETTINGS = "quantized.json"
FILES = "quantized*.safetensors"


def quantized_scheme(folder: str | Path) -> Scheme | None:
    """The scheme in which a checkpoint is kept; None of an ordinary one."""
    path = Path(folder) / SETTINGS
    return json.loads(path.read_text())["scheme"] if path.is_file() else None


def load_quantized(
    folder: Path, config: MoeLlavaConfig, scheme: Scheme | str, device: torch.device, dtype: torch.dtype | str = "auto"
) -> MoeLlavaForConditionalGeneration:
    """The quantised model of an ordinary or a quantised checkpoint; only one tensor at a time is in full precision.

    Args:
        dtype: of what is not quantised and of hidden states; by default as stored.

    Raises:
        ValueError: the checkpoint is quantised otherwise, or incomplete.
    """
    kept = quantized_scheme(folder)
    if kept is not None and kept != scheme:
        raise ValueError(f"{folder} is kept in {kept}: open it so, or quantise its original to {scheme}.")
    files = shards(folder, PATTERN if kept is None else FILES)
    if not isinstance(dtype, torch.dtype):
        dtype = stored_dtype(folder, files)
    model = empty_model(config)
    quantize_modules(model, scheme, dtype)
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in encoded(read_tensors(files), model, tied=kept is None and config.tie_word_embeddings):
            if tensor.is_floating_point() and name not in buffers:
                tensor = tensor.to(dtype)
            if name + SCALES in buffers and device.type == "cpu":
                tensor = pack(tensor)
            put(model, name, tensor.to(device))
    finish(model, folder)
    if device.type == "cpu":
        lay_out(model)
    return model


def stored_dtype(folder: Path, files: list[Path]) -> torch.dtype:
    """Type of the numbers that a checkpoint does not quantise."""
    settings = folder / SETTINGS
    if settings.is_file():
        return getattr(torch, json.loads(settings.read_text())["dtype"])
    return next(dtype for _, dtype in read_specs(files).values() if dtype.is_floating_point)


def encoded(
    tensors: Iterator[tuple[str, Tensor]], model: MoeLlavaForConditionalGeneration, tied: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of an ordinary checkpoint -> those of its quantised `model`; encoded ones pass as they are.

    A head that is `tied` to the embeddings is encoded on its own.
    """
    buffers = dict(model.named_buffers())
    embeddings = "model.language_model.embed_tokens.weight"
    for name, tensor in tensors:
        names = [name, "lm_head.weight"] if tied and name == embeddings else [name]
        for target in names:
            if target + SCALES in buffers and tensor.dtype.is_floating_point:
                numbers, scales = encode_for(buffers[target], tensor)
                yield target, numbers
                yield target + SCALES, scales
            else:
                yield target, tensor


def quantize_folder(source: Path, out: Path, config: MoeLlavaConfig, scheme: Scheme | str) -> int:
    """Write the quantised twin of a checkpoint, tensor by tensor; returns the bytes of its weights.

    Raises:
        ValueError: an unknown scheme, a source that is quantised already, or an `out` that holds something.
    """
    check_scheme(scheme)
    if quantized_scheme(source):
        raise ValueError(f"{source} is quantised already: give its original.")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty: choose another folder.")
    files = shards(source)
    dtype = stored_dtype(source, files)
    model = empty_model(config)
    quantize_modules(model, scheme, dtype)
    tied = config.tie_word_embeddings
    specs = _specs(model, read_specs(files), tied)
    out.mkdir(parents=True, exist_ok=True)
    staging = out / ".writing"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    with torch.no_grad():
        write_model(staging, specs, encoded(read_tensors(files), model, tied), stem="quantized")
    for path in source.iterdir():
        if path.is_file() and path.suffix in COPIED and not path.name.startswith("model"):
            shutil.copy(path, staging / path.name)
    settings: dict[str, Any] = {"scheme": scheme, "dtype": str(dtype).removeprefix("torch.")}
    (staging / SETTINGS).write_text(json.dumps(settings) + "\n")
    for path in sorted(staging.iterdir()):
        path.replace(out / path.name)
    staging.rmdir()
    return sum(path.stat().st_size for path in out.glob(FILES))


COPIED = (".json", ".jinja", ".model", ".txt", ".tiktoken")


def _specs(model: MoeLlavaForConditionalGeneration, specs: dict[str, Spec], tied: bool) -> dict[str, Spec]:
    """Of what `encoded` gives, in its order."""
    buffers = dict(model.named_buffers())
    targets: dict[str, Spec] = {}
    for name, spec in specs.items():
        both = [name, "lm_head.weight"] if tied and name == "model.language_model.embed_tokens.weight" else [name]
        for target in both:
            if target + SCALES in buffers:
                for one in (target, target + SCALES):
                    targets[one] = (tuple(buffers[one].shape), buffers[one].dtype)
            else:
                targets[target] = spec
    return targets
