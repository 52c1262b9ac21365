"""The verb that makes a checkpoint small."""

import argparse
from pathlib import Path

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    command = verbs.add(
        "quantize", run_quantize, "Write a checkpoint whose weights, experts included, take 8 or 4 bits."
    )
    command.add_argument("model", help="folder of a checkpoint, or hub id")
    command.add_argument("out", help="a folder that does not exist or is empty")
    command.add_argument("--to", required=True, choices=("int8", "int4"))


def run_quantize(options: argparse.Namespace) -> int | None:
    from moe_llava.checkpoint.folder import read_config
    from moe_llava.checkpoint.published import local_checkpoint
    from moe_llava.checkpoint.quantized import quantize_folder

    source = local_checkpoint(options.model)
    size = quantize_folder(source, Path(options.out), read_config(source), options.to)
    console.print(f"{options.out}: {size / 1e9:.2f} GB in {options.to}.", highlight=False)
    console.print(f"Talk to it:  moe-llava chat {options.out} --image FILE", highlight=False)
    return None
