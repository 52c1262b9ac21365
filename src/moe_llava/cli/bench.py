"""The verb that measures speed and memory."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from moe_llava.cli.verbs import Verbs, console, errors


def add_to(verbs: Verbs) -> None:
    command = verbs.add("bench", run_bench, "Measure speed and memory beside the peers and the floor.")
    command.add_argument("parts", nargs="*", help="block, answer, train, growth, loading; by default all of them")
    command.add_argument("--profile", choices=("quick", "full", "gpu"), default="full", help="how much (default full)")
    command.add_argument("--deepspeed", metavar="PYTHON", help="interpreter of an environment with deepspeed")
    command.add_argument("--rounds", type=int, help="how often every run takes its turn")
    command.add_argument("--threads", type=int, help="of a CPU; by default all cores")
    command.add_argument("--device", help="cpu or cuda")
    command.add_argument("--tokens", help="comma-separated numbers of tokens: of the block and of a training step")
    command.add_argument("--dtypes", help="comma-separated: float32, bfloat16")
    command.add_argument("--directions", help="comma-separated: forward, both")
    command.add_argument("--shapes", help="comma-separated: stablelm-1.6b, qwen-1.8b, phi-2.7b, llava-1.5-7b")
    command.add_argument("--quantize", help="comma-separated: int8, int4; measured beside bf16")
    command.add_argument("--sparse-only", action="store_true", help="leave out the dense backbones")
    command.add_argument("--layers", type=int, help="of the decoders; by default all")
    command.add_argument("--budget", type=float, help="seconds for the rounds of a case, beyond three rounds")
    command.add_argument("--folder", default=".", help="where the checkpoint of `loading` is written and removed")
    command.add_argument("--out", help="file for the report as JSON")
    command.add_argument("--json", action="store_true", help="print the report, and nothing else")


def run_bench(options: argparse.Namespace) -> int | None:
    import torch

    from moe_llava.bench.profiles import options_of
    from moe_llava.bench.run import run
    from moe_llava.bench.table import tables

    given = {name: value for name, value in vars(options).items() if name in _FIELDS and value not in (None, [])}
    if options.tokens:
        given["train_tokens"] = options.tokens
    chosen = options_of(options.profile, given)
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError("--threads is at least 1.")
        torch.set_num_threads(options.threads)
    say = errors.status("bench") if errors.is_terminal else None
    if say is not None:
        say.start()
    try:
        report = run(chosen, progress=say.update if say is not None else lambda _: None)
    finally:
        if say is not None:
            say.stop()
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(report, indent=2) + "\n")
    if options.json:
        print(json.dumps(report, indent=2))
        return None
    wide = Console(width=max(WIDTH, console.width))  # into a file, too, which has no width of its own
    for table in tables(report):
        wide.print(table, highlight=False)
        wide.print()
    return None


WIDTH = 170
_FIELDS = (
    "parts",
    "deepspeed",
    "rounds",
    "device",
    "tokens",
    "dtypes",
    "directions",
    "shapes",
    "quantize",
    "sparse_only",
    "layers",
    "budget",
    "folder",
)
