"""The verbs that measure answers."""

import argparse
import json
from pathlib import Path

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    command = verbs.add("eval", run_eval, "Answer questions with known answers and count what is right.")
    command.add_argument("model")
    command.add_argument("--questions", required=True, help="JSONL of id, question, answer, image")
    command.add_argument("--images", help="folder of the images; by default that of the questions")
    command.add_argument("--out", required=True, help="folder for predictions.jsonl and scores.json")
    command.add_argument("--limit", type=int)
    command.add_argument("--max-new-tokens", type=int, default=16)
    command.add_argument("--batch-size", type=int, default=256)

    command = verbs.add("score", run_score, "Score predictions by a benchmark's official rules.")
    command.add_argument("name")
    command.add_argument("--predictions", required=True)
    command.add_argument("--data", required=True, help="folder in the benchmark's official layout")
    command.add_argument("--json", action="store_true")


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
