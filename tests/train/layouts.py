"""Runs of a tiny recipe's sparse stage, one after the other in this group of processes.

Each run `NAME` is also copied at its third step, as a run killed there would lie, to `NAME-stopped`.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from moe_llava.evaluate.questions import examine
from moe_llava.recipe import load_recipe
from moe_llava.train.run import train


def run(recipe: str, name: str, overrides: dict[str, str], resume: bool = False) -> None:
    """Train into the folder `name`, answering questions at step 3 and at the end."""
    loaded = load_recipe(recipe, {**overrides, "output": name})

    def copy_and_examine(*arguments: Any) -> float:
        stopped = Path(f"{name}-stopped")
        if not stopped.exists() and not resume:
            shutil.copytree(name, stopped)
        return examine(*arguments)

    train(loaded, ["sparsify"], resume=resume, console=Console(quiet=True), examine=copy_and_examine)


if __name__ == "__main__":
    for task in json.loads(Path(sys.argv[1]).read_text()):
        run(**task)
