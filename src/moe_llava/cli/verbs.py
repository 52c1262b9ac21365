"""What every verb of the command line shares: how it is declared, and where it prints."""

import argparse
from collections.abc import Callable

from rich.console import Console

console = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True)


class Verbs:
    """The sub-commands of a parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        self, name: str, run: Callable[[argparse.Namespace], int | None], text: str, *, takes_overrides: bool = False
    ) -> argparse.ArgumentParser:
        """Declare a verb that calls `run`; one that takes overrides also accepts any --dotted.key value."""
        command = self._commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=run, takes_overrides=takes_overrides)
        return command

    def group(self, name: str, text: str) -> "Verbs":
        """Declare a verb that has verbs of its own."""
        return Verbs(self._commands.add_parser(name, help=text, description=text))
