"""The verb that looks into the routing."""

import argparse
import json
from pathlib import Path

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    command = verbs.add("route", run_route, "Take experts away and see which answers change.")
    command.add_argument("model", help="folder of a sparse checkpoint")
    command.add_argument("--data", required=True, help="questions (JSONL) or conversations with reference answers")
    command.add_argument("--images", help="folder of the images; by default that of the data")
    command.add_argument("--out", required=True, help="folder for pages and figures")
    command.add_argument("--limit", type=int, default=500, help="answers, taken evenly from the file (default 500)")
    command.add_argument("--ablate", action="store_true", required=True, help="take experts away, one by one")
    command.add_argument("--modes", default="zero,mean,next,router", help="what takes an expert's place")
    command.add_argument("--experts", help="LAYER:EXPERT[,...]: this set together, instead of one by one")
    command.add_argument("--most", type=int, default=8, help="most used experts of each layer (default 8)")
    command.add_argument(
        "--maps", type=int, default=4, help="answers of which patch by patch maps are drawn (default 4)"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--json", action="store_true", help="print the figures, and nothing else")


def run_route(options: argparse.Namespace) -> int | None:
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
    samples = read_samples(options.data, options.images, options.limit)
    engine = Engine.load(options.model)
    modes = options.modes.split(",")
    found = ablate(engine, samples, targets=targets, modes=modes, most=options.most, seed=options.seed)
    pictured = [one for one in samples if one.images]
    step = max(1, len(pictured) // max(options.maps, 1))
    maps = patch_maps(engine, pictured[::step][: options.maps])
    names = [draw_patch_map(engine, one, out / f"map-{number}")[0].name for number, one in enumerate(maps)]
    figures = {
        "model": options.model,
        "data": options.data,
        "n": len(samples),
        "ablations": [one.as_dict() for one in found],
    }
    text = ablation_page(found, model=options.model, data=options.data, n=len(samples), maps=names)
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
