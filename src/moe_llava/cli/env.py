"""The verb that describes the machine."""

import argparse

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    verbs.add("env", run_env, "Describe this machine and the installed versions.")


def run_env(options: argparse.Namespace) -> int | None:
    from moe_llava.train.folder import environment

    console.print_json(data=environment())
    return None
