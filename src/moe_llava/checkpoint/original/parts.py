"""The files that make up a source: its own, and those of a tower and a base decoder that lie elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_llava.checkpoint.hub import fetch
from moe_llava.checkpoint.original.families import (
    COMMON_NAMES,
    IGNORED,
    IGNORED_IN_TOWER,
    LLAVA_HF_NAMES,
    TOWER_NAMES,
)
from moe_llava.checkpoint.original.layout import Layout
from moe_llava.checkpoint.original.tensors import TensorFile, weight_files
from moe_llava.checkpoint.original.towers import tower_folder

PROJECTOR = "mm_projector.bin"
_TOWER_MARKS = ("image_tower.", "vision_tower.")


@dataclass(frozen=True)
class Part:
    """One file of tensors, the rules for their names, and what carries nothing in it."""

    file: TensorFile
    names: Sequence[tuple[str, str]]
    ignored: Sequence[str]


@dataclass(frozen=True)
class Parts:
    """Files of a source, and the folders where its tower and its tokenizer are."""

    folder: Path
    files: list[Part]
    tower: Path | None
    tokenizer: Path

    @classmethod
    def find(
        cls, folder: Path, layout: Layout, vision_tower: str | Path | None, language_model: str | Path | None
    ) -> "Parts":
        """Open the headers of all files.

        Raises:
            ValueError: weights are nowhere; the sentence says which.
        """
        names = LLAVA_HF_NAMES if layout.stock else (*COMMON_NAMES, *layout.family.names)
        paths, tokenizer = weight_files(folder), folder
        if not paths:
            if not (folder / PROJECTOR).is_file():
                raise ValueError(
                    f"{folder} holds no weights: neither model*.safetensors, pytorch_model*.bin nor {PROJECTOR}."
                )
            tokenizer = base_decoder(layout, language_model)
            paths = [folder / PROJECTOR, *weight_files(tokenizer)]
        files = [Part(TensorFile(path), names, IGNORED) for path in paths]
        inside = any(mark in name for part in files for name in part.file.specs for mark in _TOWER_MARKS)
        tower = None
        if not layout.stock:
            tower = tower_folder(layout.tower_name, vision_tower, inside)
        if tower is not None and not inside:
            found = weight_files(tower)
            if not found:
                raise ValueError(f"The vision tower {tower} holds no weights.")
            files += [Part(TensorFile(path), TOWER_NAMES, IGNORED_IN_TOWER) for path in found]
        return cls(folder, files, tower, tokenizer)


def base_decoder(layout: Layout, given: str | Path | None) -> Path:
    """Folder of the decoder that a stage I source, a projector alone, belongs to."""
    name = str(given or layout.raw.get("_name_or_path") or "")
    remedy = "Give its folder with --language-model."
    if not name:
        raise ValueError(f"The source is a projector alone and names no language model. {remedy}")
    folder = fetch(name, what="the language model of the projector,", remedy=remedy)
    if not weight_files(folder):
        raise ValueError(f"The language model {folder} holds no weights.")
    return folder
