"""The verb that shows who answered."""

import argparse
import json
from pathlib import Path

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    command = verbs.add("route", run_route, "Trace which experts read and answer, and draw a report of it.")
    command.add_argument("model", help="folder of a sparse checkpoint")
    command.add_argument(
        "--data", required=True, help="conversations (LLaVA JSON, messages JSONL) or questions (JSONL)"
    )
    command.add_argument("--images", help="folder of the images; by default that of the data")
    command.add_argument("--out", required=True, help="folder for routes.parquet, the report and its figures")
    command.add_argument("--limit", type=int, help="only the first samples")
    command.add_argument("--examples", type=int, default=8, help="samples shown one by one in the report")
    command.add_argument("--max-new-tokens", type=int, default=16, help="of an answer to a question")
    command.add_argument("--batch-size", type=int, default=64)
    command.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run_route(options: argparse.Namespace) -> int | None:
    from moe_llava.routing.run import route

    summary = route(
        options.model,
        options.data,
        Path(options.out),
        images=options.images,
        limit=options.limit,
        examples=options.examples,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
    )
    if options.json:
        print(json.dumps(summary, indent=2))
        return None
    for sentence in summary["findings"]:
        console.print(f"- {sentence}", markup=False, highlight=False)
    console.print(f"Open {Path(options.out) / 'report.html'} in a browser.", markup=False, highlight=False)
    return None
