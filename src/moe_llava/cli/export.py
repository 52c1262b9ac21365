"""The verb that writes models in other engines' layouts."""

import argparse
import json
from dataclasses import asdict

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    command = verbs.add("export", run_export, "Write a model in a stock layout that loads without this package.")
    command.add_argument("model", help="a finished stage's folder, or a hub id")
    command.add_argument("out", help="a folder that does not exist or is empty")
    command.add_argument("--to", required=True, choices=["hf-llava"], help="hf-llava: transformers' own LLaVA classes")
    command.add_argument("--json", action="store_true")


def run_export(options: argparse.Namespace) -> int | None:
    from moe_llava.checkpoint.export import export

    done = export(options.model, options.out)
    if options.json:
        print(json.dumps({"out": options.out, **asdict(done)}))
        return None
    console.print(
        f"{options.out}: {done.architecture} with {done.text_model_type}; its logits differ from the model's by at "
        f"most {done.difference:.1g}.",
        highlight=False,
    )
    return None
