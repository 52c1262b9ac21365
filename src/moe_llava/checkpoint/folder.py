"""A complete checkpoint: configuration, weights, tokenizer and processor in one folder that loads by its path."""

import shutil
from pathlib import Path
from typing import Any

import torch

from moe_llava.checkpoint.deltas import is_compressed, load_compressed
from moe_llava.checkpoint.published import local_checkpoint
from moe_llava.checkpoint.quantized import load_quantized, quantized_scheme
from moe_llava.checkpoint.weights import load_weights
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.encoding import Scheme, check_scheme


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    quantize: Scheme | str | None = None,
    device: str | torch.device = "cpu",
) -> tuple[MoeLlavaForConditionalGeneration, MoeLlavaProcessor]:
    """Read a complete checkpoint by its folder or hub id; a published one is converted first (`local_checkpoint`).

    Args:
        quantize: `int8` or `int4`: weights take 8 or 4 bits, see `moe_llava.model.encoding`. A checkpoint that is kept
            so opens so without being asked.

    Raises:
        ValueError: it is absent or something else, its weights do not fit its config, or an unknown `quantize`.
    """
    check_scheme(quantize)
    folder = local_checkpoint(source)
    processor = load_processor(folder)
    if scheme := quantize or quantized_scheme(folder):
        if is_compressed(folder):
            raise ValueError(f"{folder} keeps its experts as differences: quantise the checkpoint it was made from.")
        return load_quantized(folder, read_config(folder), scheme, torch.device(device), dtype), processor
    if is_compressed(folder):
        return load_compressed(folder, read_config(folder), dtype).to(device), processor  # type: ignore[arg-type]
    model = load_weights(folder, read_config(folder), dtype if isinstance(dtype, torch.dtype) else None)
    if model is None:
        model = _translated(folder, dtype)
    return model.to(device), processor  # type: ignore[arg-type]


def _translated(folder: Path, dtype: torch.dtype | str) -> MoeLlavaForConditionalGeneration:
    """The model of a folder that another version wrote, whose names transformers knows to translate.

    Raises:
        ValueError: weights are absent or of other shapes.
    """
    loaded: Any = MoeLlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
    )
    model, info = loaded
    if wrong := sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}):
        raise ValueError(
            f"{folder}: {len(wrong)} weights are absent or have other shapes than its config.json tells, the first of "
            f"them {wrong[0]}. It is damaged, or another version of the library wrote it: train or convert it again, "
            "or open it with that version."
        )
    return model


def load_processor(source: str | Path) -> MoeLlavaProcessor:
    """The processor of a checkpoint, without its weights.

    Raises:
        ValueError: the checkpoint is absent, something else, or has no tokenizer.
    """
    folder = local_checkpoint(source)
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder} has no tokenizer, so it cannot read a text: convert it from a source that has one.")
    return MoeLlavaProcessor.from_pretrained(folder)


def read_config(folder: str | Path) -> MoeLlavaConfig:
    """The configuration of a checkpoint, without its weights.

    Raises:
        ValueError: the folder is absent or holds something else.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json. Give the folder of a finished stage.")
    return MoeLlavaConfig.from_pretrained(folder)


def save_model(folder: Path, model: MoeLlavaForConditionalGeneration, processor: MoeLlavaProcessor) -> None:
    """Write a complete checkpoint beside, then move it into `folder` file by file.

    Raises:
        OSError: it does not fit on the disk, or the folder cannot be written.
    """
    staging = folder / ".writing"
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    processor.save_pretrained(staging)
    for path in sorted(staging.iterdir()):
        path.replace(folder / path.name)
    staging.rmdir()
