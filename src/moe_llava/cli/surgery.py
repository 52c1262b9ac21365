"""The verbs that change the number and the form of a model's experts."""

import argparse
import json
from pathlib import Path
from typing import Any

from moe_llava.cli.verbs import Verbs, console, errors


def add_to(verbs: Verbs) -> None:
    command = verbs.add("surgery", run_surgery, "Remove, merge, add or compress experts, and score what it costs.")
    command.add_argument("model", help="folder of a sparse checkpoint")
    command.add_argument("out", help="folder for the new checkpoint; of a sweep, for its table and figure")
    operations = Verbs(command)
    prune = operations.add("prune", run_surgery, "Keep the most important experts of each layer.")
    prune.add_argument("--experts", type=int, required=True, help="how many stay in each layer")
    prune.add_argument(
        "--by", default="load", help="load, text-load, image-load, reap, or random as the control (default load)"
    )
    merge = operations.add("merge", run_surgery, "Make one expert of those whose outputs are alike.")
    merge.add_argument("--experts", type=int, required=True, help="how many stay in each layer")
    clone = operations.add("clone", run_surgery, "Copy experts.")
    amount = clone.add_mutually_exclusive_group()
    amount.add_argument("--times", type=int, help="all of them, top_k as many times larger: same output (default 2)")
    amount.add_argument("--add", type=int, help="this many of the most used, top_k as it is: the output changes")
    rebase = operations.add("rebase", run_surgery, "Keep experts as their mean and small differences.")
    form = rebase.add_mutually_exclusive_group(required=True)
    form.add_argument("--rank", type=int, help="rank of the differences")
    form.add_argument("--share", type=float, help="share of the numbers of each difference to keep, as 0.01")
    sweep = operations.add("sweep", run_sweep, "Try all of them at several sizes; draw what each loses.")
    sweep.add_argument("--random-seeds", type=int, default=3, help="of the random control (default 3)")
    for one in (prune, merge, clone, rebase, sweep):
        one.add_argument("--data", required=True, help="questions (JSONL) or conversations with reference answers")
        one.add_argument("--images", help="folder of the images; by default that of the data")
        one.add_argument("--limit", type=int, default=1000, help="answers: half to choose by, half to score with")
        one.add_argument("--json", action="store_true", help="print the figures, and nothing else")
    for one in (prune, merge, clone, rebase):
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--recalibrate", metavar="FILE", help="then train the routers alone on these conversations")
        one.add_argument("--recalibrate-images", metavar="FOLDER")
        one.add_argument("--recalibrate-steps", type=int, default=100)
        one.add_argument("--recalibrate-lr", type=float, default=1e-3)
    for name, one in {"prune": prune, "merge": merge, "clone": clone, "rebase": rebase}.items():
        one.set_defaults(operation=name)


def run_surgery(options: argparse.Namespace) -> int | None:
    from moe_llava.routing.operate import Operation, Recalibration, operate
    from moe_llava.routing.score import read_samples

    fields = ("experts", "by", "times", "add", "rank", "share", "seed")
    given = {name: value for name in fields if (value := getattr(options, name, None)) is not None}
    recalibration = None
    if options.recalibrate:
        recalibration = Recalibration(
            options.recalibrate, options.recalibrate_images, options.recalibrate_steps, options.recalibrate_lr
        )
    samples = read_samples(options.data, options.images, options.limit)
    figures = operate(
        options.model,
        Path(options.out),
        Operation(options.operation, **given),
        samples,
        recalibration=recalibration,
        console=errors if options.json else console,
    )
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        _print(figures, options.out)
    return None


def _print(figures: dict[str, Any], out: str) -> None:
    from rich.table import Table

    from moe_llava.routing.compare import FEW

    table = Table(title=f"{figures['scored_answers']:,} answers", title_justify="left")
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    before, after = figures["before"], figures["after"]
    table.add_row("experts in a layer", *(str(figures["experts"][state]) for state in ("before", "after")))
    for name, form in (
        ("parameters", ","),
        ("activated_parameters", ","),
        ("weight_bytes", ","),
        ("milliseconds", ".1f"),
    ):
        table.add_row(name.replace("_", " "), format(before[name], form), format(after[name], form))
    table.add_row("log-probability, nats", f"{before['log_probability']:.4f}", f"{after['log_probability']:.4f}")
    table.add_row("right, %", f"{100 * before['accuracy']:.2f}", f"{100 * after['accuracy']:.2f}")
    console.print(table)
    for name, one in figures["difference"].items():
        sure = one["groups"] >= FEW
        nats = _change(one["log_probability"], 1, ".4f", sure)
        points = _change(one["accuracy"], 100, ".2f", sure)
        console.print(f"{name} ({one['n']:,}): {nats} nats, {points} points", highlight=False)
    jump = figures["largest_change_of_a_logit"]
    console.print(f"Before any training, logits of 64 random tokens change by up to {jump:.3g}.", highlight=False)
    console.print(f"The model: {out}", highlight=False)


def _change(one: dict[str, float], scale: float, form: str, sure: bool) -> str:
    """Mean and interval; without the interval where too few answers stand behind it."""
    mean, low, high = (format(scale * one[name], f"+{form}") for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})" if sure else mean


def run_sweep(options: argparse.Namespace) -> int | None:
    from dataclasses import asdict

    from rich.table import Table

    from moe_llava.generate.engine import Engine
    from moe_llava.routing.score import read_samples
    from moe_llava.routing.sweep import as_csv, draw, pareto, sweep

    out = Path(options.out)
    if (out / "sweep.csv").exists():
        raise ValueError(f"{out} holds a sweep: choose another folder.")
    samples = read_samples(options.data, options.images, options.limit)
    told = lambda text: errors.print(text, style="dim", highlight=False)  # noqa: E731
    whole, points = sweep(Engine.load(options.model), samples, random_seeds=options.random_seeds, told=told)
    paths = draw(whole, points, out)
    (out / "sweep.csv").write_text(as_csv(points))
    if options.json:
        print(json.dumps({"whole": whole.as_dict(), "points": [asdict(point) for point in points]}, indent=2))
        return None
    front = pareto(points)
    table = Table(title="differences from the whole model; * nothing smaller is better", title_justify="left")
    for column in ("", "", "MB", "ms (whole)", "nats an answer", "points"):
        table.add_column(column, justify="right" if column else "left")
    for one in points:
        table.add_row(
            f"{'* ' if one in front else ''}{one.method}",
            one.setting,
            f"{one.weight_bytes / 1e6:.2f}",
            f"{one.milliseconds:.1f} ({one.milliseconds_of_whole:.1f})",
            f"{one.nats:+.4f} ({one.nats_low:+.3f} to {one.nats_high:+.3f})",
            f"{100 * one.accuracy:+.2f}",
        )
    console.print(table)
    console.print(f"The figure: {paths[0]}, {paths[1]}; the table: {out / 'sweep.csv'}", highlight=False)
    return None
