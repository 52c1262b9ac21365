"""The verbs that bring in what was published."""

import argparse
import json

from moe_llava.cli.verbs import Verbs, console, errors


def add_to(verbs: Verbs) -> None:
    command = verbs.add("convert", run_convert, "Turn a published MoE-LLaVA or LLaVA-1.5 checkpoint into one of ours.")
    command.add_argument("source", help="folder or hub id: stage I, II or III of MoE-LLaVA, LLaVA-1.5 in either layout")
    command.add_argument("out", help="a folder that does not exist or is empty")
    command.add_argument("--vision-tower", help="folder or hub id; needed where the source neither holds nor names it")
    command.add_argument("--language-model", help="folder or hub id of the decoder, for a projector alone (stage I)")
    command.add_argument("--json", action="store_true")


def run_convert(options: argparse.Namespace) -> int | None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from moe_llava.checkpoint.original import convert

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("", total=None)
        done = convert(
            options.source,
            options.out,
            vision_tower=options.vision_tower,
            language_model=options.language_model,
            progress=lambda written, total: bar.update(task, completed=written, total=total),
        )
    for warning in done.warnings:
        errors.print(f"Warning: {warning}", style="yellow", markup=False, highlight=False)
    if options.json:
        print(json.dumps({"out": options.out, "tensors": done.tensors, "bytes": done.bytes, "warnings": done.warnings}))
        return None
    console.print(f"{options.out}: {done.tensors} tensors, {done.bytes / 1e9:.2f} GB; none missing, none left over.")
    if not done.warnings:
        console.print(f"Talk to it:  moe-llava chat {options.out} --image FILE", highlight=False)
    return None
