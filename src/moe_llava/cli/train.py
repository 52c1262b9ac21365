"""The verb that trains."""

import argparse

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    command = verbs.add("train", run_train, "Run the stages of a recipe.", takes_overrides=True)
    command.add_argument("recipe", help="a TOML file; any field is overridden by --dotted.key value")
    command.add_argument("--stages", help="comma-separated; by default all of the recipe")
    command.add_argument("--resume", action="store_true", help="continue what is there instead of refusing")
    command.add_argument(
        "--dry-run", action="store_true", help="check the recipe and print what it would do; no weights"
    )
    command.add_argument("--devices", help="with --dry-run: what it needs there, for example 8xA100-80GB")
    command.add_argument(
        "--utilisation",
        type=float,
        default=0.35,
        help="share of the devices' best arithmetic to reckon hours with (default 0.35)",
    )


def run_train(options: argparse.Namespace) -> int | None:
    from moe_llava.evaluate.questions import examine
    from moe_llava.evaluate.report import write_report
    from moe_llava.recipe import load_recipe
    from moe_llava.train.advice import advice_tables, advise
    from moe_llava.train.devices import parse_devices
    from moe_llava.train.plan import plan, plan_table
    from moe_llava.train.run import train

    recipe = load_recipe(options.recipe, options.overrides)
    names = options.stages.split(",") if options.stages else None
    if options.devices and not options.dry_run:
        raise ValueError("--devices is for --dry-run: a run takes the devices that torchrun gives it.")
    if options.dry_run:
        plans = plan(recipe, names)
        console.print(*plan_table(plans), sep="\n")
        if options.devices:
            if not 0 < options.utilisation <= 1:
                raise ValueError(f"--utilisation {options.utilisation} is no share: give more than 0 and at most 1.")
            cluster = parse_devices(options.devices)
            advices = [(one.name, advise(one.name, one.work, cluster, options.utilisation)) for one in plans]
            console.print(*advice_tables(advices, options.utilisation), sep="\n", highlight=False)
        return None
    train(recipe, names, resume=options.resume, console=console, examine=examine)
    if recipe.report and names is None:
        write_report(recipe, console)
        last = recipe.folder(list(recipe.report.models.values())[-1])
        console.print(f"Talk to it:  moe-llava chat {last} --image FILE", highlight=False)
    return None
