"""The folder of a stage: what is in it, and how it comes to be complete."""

import json
import os
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from moe_llava.checkpoint.folder import save_model
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.train.trainer import checkpoints

DONE = "stage.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
START = "start"


def is_complete(folder: Path) -> bool:
    """Whether a stage has ended here: its last file is written."""
    return (folder / DONE).is_file()


def check_writable(folder: Path, resume: bool) -> None:
    """Refuse to write over an earlier run.

    Raises:
        ValueError: the folder holds something and `resume` is off.
        OSError: the folder cannot be written.
    """
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise ValueError(f"{folder} exists: add --resume to continue it, or choose another --output.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OSError(f"Cannot write to {folder}: {error.strerror}. Choose another --output.") from error


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole training checkpoint of an unfinished stage."""
    found = checkpoints(folder / CHECKPOINTS)
    return found[-1] if found else None


def write_json(path: Path, value: Any) -> None:
    """Write beside, then rename."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(json.dumps(value, indent=2) + "\n")
    beside.replace(path)


def complete(
    folder: Path, model: MoeLlavaForConditionalGeneration, processor: MoeLlavaProcessor, summary: dict[str, Any]
) -> None:
    """Write the final model so that the folder loads by its path alone; `stage.json` comes last.

    Raises:
        OSError: it does not fit on the disk; the training checkpoint is kept.
    """
    try:
        save_model(folder, model, processor)
        write_json(folder / DONE, summary)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OSError(
            f"Could not write the model to {folder}: {error}. The last training checkpoint is untouched: "
            "make room, then run the same command with --resume."
        ) from error
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    shutil.rmtree(folder / START, ignore_errors=True)


def environment() -> dict[str, Any]:
    """What the run ran on."""
    packages = ("moe-llava", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": {name: version(name) for name in packages},
    }
