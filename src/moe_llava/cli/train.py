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


def run_train(options: argparse.Namespace) -> int | None:
    from moe_llava.evaluate.questions import examine
    from moe_llava.evaluate.report import write_report
    from moe_llava.recipe import load_recipe
    from moe_llava.train.plan import plan, plan_table
    from moe_llava.train.run import train

    recipe = load_recipe(options.recipe, options.overrides)
    names = options.stages.split(",") if options.stages else None
    if options.dry_run:
        console.print(*plan_table(plan(recipe, names)), sep="\n")
        return None
    train(recipe, names, resume=options.resume, console=console, examine=examine)
    if recipe.report and names is None:
        write_report(recipe, console)
        last = recipe.folder(list(recipe.report.models.values())[-1])
        console.print(f"Talk to it:  moe-llava chat {last} --image FILE", highlight=False)
    return None
