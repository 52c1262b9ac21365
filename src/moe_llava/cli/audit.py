"""The verb that asks whether the mixture does anything."""

import argparse
import json
from pathlib import Path

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    command = verbs.add("audit", run_audit, "Does the mixture do anything? Take it apart and see which answers change.")
    command.add_argument("model", help="folder of a sparse checkpoint")
    command.add_argument("--data", required=True, help="questions (JSONL) or conversations with reference answers")
    command.add_argument("--images", help="folder of the images; by default that of the data")
    command.add_argument("--dense", help="folder of the dense twin, trained as long on the same data")
    command.add_argument("--out", default="audit.html", help="the page; the figures go beside it as .json")
    command.add_argument("--limit", type=int, default=2000, help="answers, taken evenly from the file (default 2000)")
    command.add_argument("--seed", type=int, default=0, help="of random routers and the bootstrap")
    command.add_argument("--json", action="store_true", help="print the figures, and nothing else")


def run_audit(options: argparse.Namespace) -> int | None:
    from rich.table import Table

    from moe_llava.generate.engine import Engine
    from moe_llava.routing.audit import answer, audit
    from moe_llava.routing.audit_page import audit_page
    from moe_llava.routing.page import write_page
    from moe_llava.routing.score import read_samples

    out = Path(options.out)
    if out.suffix != ".html":
        raise ValueError(f"--out {out}: give the name of an .html file.")
    if out.exists():
        raise ValueError(f"{out} exists: choose another --out.")
    samples = read_samples(options.data, options.images, options.limit)
    engine = Engine.load(options.model)
    dense = Engine.load(options.dense) if options.dense else None
    result = audit(engine, samples, dense, seed=options.seed)
    figures = {"model": options.model, "data": options.data, "dense": options.dense, **result.as_dict()}
    write_page(out, audit_page(result, model=options.model, data=options.data, dense=options.dense), figures)
    if options.json:
        print(json.dumps(figures, indent=2))
        return None
    table = Table(title=f"{result.n:,} answers, {100 * result.accuracy:.2f} % right", title_justify="left")
    for column in ("with", "verdict", "in words"):
        table.add_column(column)
    for test in result.tests:
        table.add_row(test.title, test.verdict, test.sentence)
    console.print(table)
    console.print(answer(result), style="bold", highlight=False)
    console.print(f"The page: {out}", highlight=False)
    return None
