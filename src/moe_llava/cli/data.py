"""The verbs on conversations."""

import argparse
from pathlib import Path

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    data = verbs.group("data", "Check, preview or build conversations.")
    check = data.add("check", run_data_check, "Read everything and report every problem.")
    preview = data.add("preview", run_data_preview, "Show what the model sees and what is supervised.")
    for command in (check, preview):
        command.add_argument("file", help="LLaVA JSON or messages JSONL")
        command.add_argument("--images", help="folder of the images; by default that of the file")
        command.add_argument("--model", help="checkpoint whose tokenizer and template to use")
    preview.add_argument("--template", default="vicuna", help="chat template, where no --model is given")
    preview.add_argument("--limit", type=int, default=3, help="number of conversations")
    demo = data.add("demo", run_data_demo, "Write the demonstration's images, conversations and tower.")
    smol = data.add("smol", run_data_smol, "Write the small real model's pictures, conversations, tower and decoder.")
    for command in (demo, smol):
        command.add_argument("folder")


def run_data_check(options: argparse.Namespace) -> int | None:
    from moe_llava.checkpoint.folder import load_processor
    from moe_llava.data.inspect import check

    report = check(options.file, options.images, load_processor(options.model) if options.model else None)
    console.print(report.text(), markup=False, highlight=False)
    return 1 if report.problems else 0


def run_data_preview(options: argparse.Namespace) -> int | None:
    from moe_llava.checkpoint.folder import load_processor
    from moe_llava.data.conversation import read_conversations
    from moe_llava.data.inspect import preview

    processor = load_processor(options.model) if options.model else options.template
    for conversation in read_conversations(options.file, options.images)[: options.limit]:
        console.print(preview(conversation, processor))
    return None


def run_data_demo(options: argparse.Namespace) -> int | None:
    from moe_llava.data.demo import build_demo

    summary = build_demo(Path(options.folder), progress=True)
    console.print(str(summary), markup=False, highlight=False)
    return None


def run_data_smol(options: argparse.Namespace) -> int | None:
    from moe_llava.data.smol import build_smol

    summary = build_smol(Path(options.folder), progress=True)
    console.print(str(summary), markup=False, highlight=False)
    return None
