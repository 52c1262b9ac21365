"""A published checkpoint -> a complete checkpoint of this library, tensor by tensor."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig

from moe_llava.checkpoint.hub import fetch
from moe_llava.checkpoint.original.layout import Layout, read_layout
from moe_llava.checkpoint.original.parts import Parts
from moe_llava.checkpoint.original.placing import Placer, check_shapes, place
from moe_llava.checkpoint.original.tensors import TensorReader
from moe_llava.checkpoint.original.tokenizer import read_tokenizer
from moe_llava.checkpoint.original.towers import tower_pixels
from moe_llava.checkpoint.stream import Spec, num_bytes, write_model
from moe_llava.data.pixels import llava_pixels
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.data.template import resolve_template
from moe_llava.model.config import MoeLlavaConfig

Progress = Callable[[int, int], None]


@dataclass
class Conversion:
    """What a conversion made. `warnings` are sentences for people."""

    config: MoeLlavaConfig
    bytes: int
    tensors: int
    warnings: list[str] = field(default_factory=list)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    vision_tower: str | Path | None = None,
    language_model: str | Path | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write `source` to `out` as a complete checkpoint of ours.

    What it is, config.json alone decides. Tensors keep their stored precision and pass through memory one target at a
    time. `progress` is told bytes done and bytes in all.

    Args:
        source: folder, or hub id, of a checkpoint of MoE-LLaVA (any stage), or of LLaVA-1.5 in either layout.
        out: a folder that does not exist or is empty.
        vision_tower: folder or hub id of the tower; needed where the source neither holds nor names one.
        language_model: folder or hub id of the base decoder of a stage I source; by default the one it names.

    Raises:
        ValueError: something does not fit or is missing; tensors are listed by name.
        OSError: the disk is full or the folder cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: choose another folder, or remove it.")
    folder = fetch(str(source), what="the checkpoint")
    layout = read_layout(folder)
    parts = Parts.find(folder, layout, vision_tower, language_model)
    config = layout.config(layout.tower_config(parts.tower))
    warnings: list[str] = []
    processor = _processor(layout, config, parts, warnings)
    placer = _placed(layout, config, parts)
    specs = _specs(placer, parts)
    _check_room(out, sum(map(num_bytes, specs.values())))
    created, staging = not out.exists(), out / ".writing"
    staging.mkdir(parents=True)
    try:
        write_model(staging, specs, _tensors(placer, parts, specs, progress))
        _write_config(staging, config, processor, specs)
        for path in sorted(staging.iterdir()):
            path.replace(out / path.name)
    except BaseException:
        shutil.rmtree(out if created else staging, ignore_errors=True)
        raise
    staging.rmdir()
    return Conversion(config, sum(map(num_bytes, specs.values())), len(specs), warnings)


def _check_room(out: Path, needed: int) -> None:
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    if (free := shutil.disk_usage(existing).free) < needed:
        raise ValueError(f"{out} needs {needed / 1e6:,.1f} MB and its disk has {free / 1e6:,.1f} MB left: make room.")


def _placed(layout: Layout, config: MoeLlavaConfig, parts: Parts) -> Placer:
    """Every tensor in its place.

    Raises:
        ValueError: tensors are missing, left over, or of another shape.
    """
    placer = Placer(config, layout.family)
    for number, part in enumerate(parts.files):
        placer.add(number, part.file.specs, part.names, part.ignored)
    lists = {"missing": placer.missing(), "unexpected": placer.placement.unexpected}
    if any(lists.values()):
        listed = "".join(f"\n  {kind}: {name}" for kind, names in lists.items() for name in names)
        counts = " and ".join(f"{len(names)} {kind}" for kind, names in lists.items())
        raise ValueError(f"The tensors do not make up the model that config.json describes: {counts}.{listed}")
    check_shapes(placer.placement, placer.shapes, [part.file.specs for part in parts.files])
    return placer


def _specs(placer: Placer, parts: Parts) -> dict[str, Spec]:
    """Shape and type of every target, in the order in which their first pieces lie in the files."""
    pieces = placer.placement.pieces
    types = {
        name: reduce(torch.promote_types, (parts.files[piece.file].file.specs[piece.source][1] for piece in own))
        for name, own in pieces.items()
    }
    order = sorted(placer.shapes, key=lambda name: pieces[name][0].file if name in pieces else len(parts.files))
    usual = types["model.language_model.embed_tokens.weight"]
    return {name: (placer.shapes[name], types.get(name, usual)) for name in order}


def _tensors(
    placer: Placer, parts: Parts, specs: dict[str, Spec], progress: Progress | None
) -> Iterator[tuple[str, Tensor]]:
    reader = TensorReader([part.file for part in parts.files])
    done, total = 0, sum(map(num_bytes, specs.values()))
    for name, (shape, dtype) in specs.items():
        tensor = torch.zeros(shape, dtype=dtype)
        for piece in placer.placement.pieces.get(name, []):
            place(tensor, piece, reader.read(piece.file, piece.source))
        yield name, tensor
        done += num_bytes((shape, dtype))
        if progress:
            progress(done, total)


def _processor(layout: Layout, config: MoeLlavaConfig, parts: Parts, warnings: list[str]) -> MoeLlavaProcessor | None:
    """The processor of the model, and the image token's id in its configuration; `None` without a tokenizer."""
    tokenizer, warning = read_tokenizer(parts.tokenizer, layout.family, config.text_config)
    warnings += [warning] if warning else []
    if tokenizer is None:
        return None
    config.image_token_id = tokenizer.get_vocab()["<image>"]
    pixels = tower_pixels(config.vision_config, parts.tower, parts.folder)
    return MoeLlavaProcessor(
        image_processor=llava_pixels(pixels, pad=layout.pads),
        tokenizer=tokenizer,
        chat_template=resolve_template(layout.family.template, tokenizer),
        image_seq_length=config.image_seq_length,
    )


def _write_config(
    folder: Path, config: MoeLlavaConfig, processor: MoeLlavaProcessor | None, specs: dict[str, Spec]
) -> None:
    config.architectures = ["MoeLlavaForConditionalGeneration"]
    config.dtype = specs["model.language_model.embed_tokens.weight"][1]
    config.save_pretrained(folder)
    text_config = config.text_config
    stops = processor.stop_token_ids if processor else text_config.eos_token_id
    pad = processor.tokenizer.pad_token_id if processor else text_config.pad_token_id
    GenerationConfig(bos_token_id=text_config.bos_token_id, eos_token_id=stops, pad_token_id=pad).save_pretrained(
        folder
    )
    if processor:
        processor.save_pretrained(folder)
