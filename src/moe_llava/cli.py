"""`moe-llava`: one verb per capability; parses, calls, prints."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

console = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: exit status 0 done, 1 failed, 2 wrong usage."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        options.overrides = parse_overrides(rest) if options.takes_overrides else {}
        if rest and not options.takes_overrides:
            raise UsageError(f"unknown arguments: {' '.join(rest)}")
    except UsageError as error:
        parser.error(str(error))
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        run: Callable[[argparse.Namespace], int | None] = options.run
        return run(options) or 0
    except KeyboardInterrupt:
        errors.print("Stopped.")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        errors.print(f"Error: {_sentence(error)}", style="red", markup=False, highlight=False)
        return 1


class UsageError(Exception):
    """The command line cannot be understood."""


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def parse_overrides(rest: Sequence[str]) -> dict[str, str]:
    """`--stages.align.steps 10 --seed=1` -> dotted keys and their values."""
    overrides: dict[str, str] = {}
    remaining = list(rest)
    while remaining:
        key = remaining.pop(0)
        if not key.startswith("--"):
            raise UsageError(f"unexpected argument {key!r}; a field of the recipe is set by --dotted.key value")
        key, equals, value = key[2:].partition("=")
        if not equals:
            if not remaining:
                raise UsageError(f"--{key} needs a value")
            value = remaining.pop(0)
        overrides[key] = value
    return overrides


def build_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(prog="moe-llava", description="Sparse vision-language models by MoE-Tuning.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        owner: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str, overrides: bool = False
    ) -> argparse.ArgumentParser:
        command = owner.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)
        command.set_defaults(run=run, takes_overrides=overrides)
        return command

    command = add(commands, "train", run_train, "Run the stages of a recipe.", overrides=True)
    command.add_argument("recipe", help="a TOML file; any field is overridden by --dotted.key value")
    command.add_argument("--stages", help="comma-separated; by default all of the recipe")
    command.add_argument("--resume", action="store_true", help="continue what is there instead of refusing")
    command.add_argument(
        "--dry-run", action="store_true", help="check the recipe and print what it would do; no weights"
    )

    command = add(commands, "chat", run_chat, "Ask a model; without --prompt, a conversation.")
    command.add_argument("model", help="folder of a checkpoint")
    command.add_argument("--image", action="append", default=[], help="a picture; several are allowed")
    command.add_argument("--prompt", help="ask once and leave")
    command.add_argument("--max-new-tokens", type=int, default=256)
    command.add_argument("--temperature", type=float, default=0.0)

    command = add(commands, "inspect", run_inspect, "Count parameters, FLOPs and memory of a model or a recipe.")
    command.add_argument("source", help="folder of a checkpoint, hub id, or recipe")
    command.add_argument("--json", action="store_true")

    data = commands.add_parser("data", help="Check, preview or build conversations.")
    data_commands = data.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("check", run_data_check, "Read everything and report every problem."),
        ("preview", run_data_preview, "Show what the model sees and what is supervised."),
    ):
        command = add(data_commands, name, run, text)
        command.add_argument("file", help="LLaVA JSON or messages JSONL")
        command.add_argument("--images", help="folder of the images; by default that of the file")
        command.add_argument("--model", help="checkpoint whose tokenizer and template to use")
        if name == "preview":
            command.add_argument("--template", default="vicuna", help="chat template, where no --model is given")
            command.add_argument("--limit", type=int, default=3, help="number of conversations")
    command = add(data_commands, "demo", run_data_demo, "Write the demonstration's images, conversations and tower.")
    command.add_argument("folder")

    command = add(commands, "eval", run_eval, "Answer questions with known answers and count what is right.")
    command.add_argument("model")
    command.add_argument("--questions", required=True, help="JSONL of id, question, answer, image")
    command.add_argument("--images", help="folder of the images; by default that of the questions")
    command.add_argument("--out", required=True, help="folder for predictions.jsonl and scores.json")
    command.add_argument("--limit", type=int)
    command.add_argument("--max-new-tokens", type=int, default=16)
    command.add_argument("--batch-size", type=int, default=256)

    command = add(commands, "score", run_score, "Score predictions by a benchmark's official rules.")
    command.add_argument("name")
    command.add_argument("--predictions", required=True)
    command.add_argument("--data", required=True, help="folder in the benchmark's official layout")
    command.add_argument("--json", action="store_true")

    add(commands, "env", run_env, "Describe this machine and the installed versions.")
    return parser


def run_train(options: argparse.Namespace) -> int | None:
    from moe_llava.evaluate.report import write_report
    from moe_llava.recipe import load_recipe
    from moe_llava.train.plan import plan, plan_table
    from moe_llava.train.run import train

    recipe = load_recipe(options.recipe, options.overrides)
    names = options.stages.split(",") if options.stages else None
    if options.dry_run:
        console.print(*plan_table(plan(recipe, names)), sep="\n")
        return None
    train(recipe, names, resume=options.resume, console=console)
    if recipe.report and names is None:
        write_report(recipe, console)
        last = recipe.folder(list(recipe.report.models.values())[-1])
        console.print(f"Talk to it:  moe-llava chat {last} --image FILE", highlight=False)
    return None


def run_chat(options: argparse.Namespace) -> int | None:
    from moe_llava.assistant import load
    from moe_llava.chat import converse
    from moe_llava.generate.engine import Decoding

    assistant = load(options.model)
    decoding = Decoding(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    if options.prompt is None:
        converse(assistant, options.image, decoding, console)
        return None
    for piece in assistant.stream(options.prompt, options.image, decoding=decoding):
        console.print(piece, end="", markup=False, highlight=False)
    console.print()
    return None


def run_inspect(options: argparse.Namespace) -> int | None:
    from moe_llava.train.plan import accounting_table, inspect

    account = inspect(options.source)
    if options.json:
        print(json.dumps(account.as_dict(), indent=2))
    else:
        console.print(accounting_table(account))
    return None


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


def run_eval(options: argparse.Namespace) -> int | None:
    from moe_llava.evaluate.questions import evaluate

    scores = evaluate(
        options.model,
        options.questions,
        Path(options.out),
        images=options.images,
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
    )
    console.print_json(data=scores)
    return None


def run_score(options: argparse.Namespace) -> int | None:
    from moe_llava.evaluate.scores import score

    report = score(options.name, Path(options.predictions), Path(options.data))
    if options.json:
        print(json.dumps(report.figures, indent=2))
    else:
        console.print(report.text(), markup=False, highlight=False)
    return None


def run_env(options: argparse.Namespace) -> int | None:
    from moe_llava.train.folder import environment

    console.print_json(data=environment())
    return None


if __name__ == "__main__":
    sys.exit(main())
