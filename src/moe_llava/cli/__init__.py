"""`moe-llava`: one verb per capability; parses, calls, prints. Each file holds the verbs of one room."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from moe_llava.cli import (
    audit,
    bench,
    chat,
    convert,
    data,
    env,
    evaluate,
    export,
    inspect,
    quantize,
    route,
    serve,
    surgery,
    train,
)
from moe_llava.cli.verbs import Verbs, errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: exit status 0 done, 1 failed, 2 wrong usage."""
    # Read by torch when it makes its first tensor: then large tensors lie on large pages, which are quicker to get.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        options.overrides = parse_overrides(rest) if options.takes_overrides else {}
        if rest and not options.takes_overrides:
            raise UsageError(f"unknown arguments: {' '.join(rest)}")
    except UsageError as error:
        parser.error(str(error))
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        run: Callable[[argparse.Namespace], int | None] = options.run
        return run(options) or 0
    except KeyboardInterrupt:
        errors.print("Stopped.")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        errors.print(f"Error: {_sentence(error)}", style="red", markup=False, highlight=False)
        return 1


class UsageError(Exception):
    """The command line cannot be understood."""


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def parse_overrides(rest: Sequence[str]) -> dict[str, str]:
    """`--stages.align.steps 10 --seed=1` -> dotted keys and their values."""
    overrides: dict[str, str] = {}
    remaining = list(rest)
    while remaining:
        key = remaining.pop(0)
        if not key.startswith("--"):
            raise UsageError(f"unexpected argument {key!r}; a field of the recipe is set by --dotted.key value")
        key, equals, value = key[2:].partition("=")
        if not equals:
            if not remaining:
                raise UsageError(f"--{key} needs a value")
            value = remaining.pop(0)
        overrides[key] = value
    return overrides


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="moe-llava", description="Sparse vision-language models by MoE-Tuning.")
    verbs = Verbs(parser)
    for room in (
        train,
        chat,
        serve,
        convert,
        export,
        quantize,
        inspect,
        data,
        evaluate,
        route,
        audit,
        surgery,
        bench,
        env,
    ):
        room.add_to(verbs)
    return parser
