"""The verb that shows who answered, and who would have."""

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
    command.add_argument("--limit", type=int, help="only the first samples; with --ablate, so many of all (500)")
    command.add_argument("--examples", type=int, default=8, help="samples shown one by one in the report")
    command.add_argument("--max-new-tokens", type=int, default=16, help="of an answer to a question")
    command.add_argument("--batch-size", type=int, default=64)
    command.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    ablate = command.add_argument_group("taking experts away")
    ablate.add_argument("--ablate", action="store_true", help="instead, take experts away and see which answers change")
    ablate.add_argument("--modes", default="zero,mean,next,router", help="what takes an expert's place")
    ablate.add_argument("--experts", help="LAYER:EXPERT[,...]: this set together, instead of one by one")
    ablate.add_argument("--most", type=int, default=8, help="most used experts of each layer (default 8)")
    ablate.add_argument("--maps", type=int, default=4, help="answers drawn patch by patch (default 4)")
    ablate.add_argument("--seed", type=int, default=0)


def run_route(options: argparse.Namespace) -> int | None:
    if options.ablate:
        return run_ablate(options)
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


def run_ablate(options: argparse.Namespace) -> int | None:
    from moe_llava.generate.engine import Engine
    from moe_llava.routing.ablation import ablate, read_target
    from moe_llava.routing.ablation_page import ablation_page
    from moe_llava.routing.page import write_page
    from moe_llava.routing.patch_maps import draw_patch_map, patch_maps
    from moe_llava.routing.score import read_samples

    out = Path(options.out)
    path = out / "ablation.html"
    if path.exists():
        raise ValueError(f"{path} exists: choose another --out.")
    targets = [read_target(options.experts)] if options.experts else None
    samples = read_samples(options.data, options.images, 500 if options.limit is None else options.limit)
    engine = Engine.load(options.model)
    modes = options.modes.split(",")
    found = ablate(engine, samples, targets=targets, modes=modes, most=options.most, seed=options.seed)
    pictured = [one for one in samples if one.images]
    step = max(1, len(pictured) // max(options.maps, 1))
    maps = patch_maps(engine, pictured[::step][: options.maps])
    pictures = [draw_patch_map(engine, one, out / f"map-{number}")[0] for number, one in enumerate(maps)]
    figures = {
        "model": options.model,
        "data": options.data,
        "n": len(samples),
        "ablations": [one.as_dict() for one in found],
    }
    text = ablation_page(found, model=options.model, data=options.data, n=len(samples), maps=pictures)
    write_page(path, text, figures)
    if options.json:
        print(json.dumps(figures, indent=2))
        return None
    from rich.table import Table

    table = Table(title=f"{len(samples):,} answers: change without, in nats an answer", title_justify="left")
    for column in ("mode", "without", "load, %", "change", "of random ones", "beyond them"):
        table.add_column(column, justify="left" if column in ("mode", "without") else "right")
    for one in found:
        cells = [one.mode, one.name, f"{100 * one.load:.1f}"]
        for split in (one.difference, one.control, one.beyond):
            nats = split["all"].log_probability if split else None
            cells.append(f"{nats.mean:+.4f} ({nats.low:+.4f} to {nats.high:+.4f})" if nats else "")
        table.add_row(*cells)
    console.print(table)
    console.print(f"The page: {path}", highlight=False)
    return None
