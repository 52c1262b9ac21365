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
    zoo = verbs.add("zoo", run_zoo, "List the published models: where they are, and their published scores.")
    zoo.add_argument("--json", action="store_true")


def run_convert(options: argparse.Namespace) -> int | None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from moe_llava.checkpoint.original import convert

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
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


def run_zoo(options: argparse.Namespace) -> int | None:
    from rich.table import Table

    from moe_llava.checkpoint.zoo import ZOO

    if options.json:
        print(json.dumps({"models": [model.as_dict() for model in ZOO]}, indent=2))
        return None
    scores = Table(box=None, padding=(0, 1, 0, 0), title="published scores", title_justify="left")
    short = ("VQAv2", "GQA", "VizWiz", "SQA-I", "T-VQA", "POPE", "MME", "MMB", "Vet")
    for title in ("model", "active", *short):
        scores.add_column(title, justify="left" if title == "model" else "right", no_wrap=True)
    for model in {model.name: model for model in ZOO if model.scores}.values():
        scores.add_row(model.name, f"{model.activated_billions:.1f}B", *(f"{score:.1f}" for score in model.scores))
    places = Table(box=None, padding=(0, 1, 0, 0), title="where they are", title_justify="left")
    for title in ("model", "stage", "Hugging Face, ModelScope"):
        places.add_column(title, no_wrap=True)
    for model in ZOO:
        places.add_row(model.name, model.stage, model.hugging_face)
        if model.modelscope:
            places.add_row("", "", model.modelscope)
    console.print(scores, "", places, "", sep="\n")
    console.print(f"moe-llava chat {ZOO[0].hugging_face} --image FILE    (by the Hugging Face id)", highlight=False)
    return None
