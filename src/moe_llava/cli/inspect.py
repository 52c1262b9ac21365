"""The verb that counts."""

import argparse
import json

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    command = verbs.add("inspect", run_inspect, "Count parameters, FLOPs and memory of a model or a recipe.")
    command.add_argument("source", help="folder of a checkpoint, hub id, or recipe")
    command.add_argument("--json", action="store_true")


def run_inspect(options: argparse.Namespace) -> int | None:
    from moe_llava.train.plan import accounting_table, inspect

    account = inspect(options.source)
    if options.json:
        print(json.dumps(account.as_dict(), indent=2))
    else:
        console.print(accounting_table(account))
    return None
