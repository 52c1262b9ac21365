"""Time and memory of converting a published checkpoint of full size, of random weights.

    python benchmarks/convert.py SCRATCH [--recipe recipes/stablelm-1.6b-x4.toml] [--random-layers 8] [--kind bin]

SCRATCH needs room for the source, holes left where layers are zero, and for the result. Both are removed at the end.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessor

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.checkpoint.published import original_config, original_names

from moe_llava.checkpoint.stream import write_model
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.recipe import load_recipe
from moe_llava.train.plan import stage_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--recipe", default="recipes/stablelm-1.6b-x4.toml")
    parser.add_argument("--kind", choices=("safetensors", "bin"), default="safetensors")
    parser.add_argument("--random-layers", type=int, default=1000, help="layers with random weights; the rest is zero")
    options = parser.parse_args()
    source, out, tower = (options.scratch / name for name in ("source", "out", "tower"))
    try:
        largest, total = make_source(options.recipe, source, tower, options.random_layers, options.kind)
        idle, _ = run([str(options.scratch / "nowhere"), str(out)])
        peak, seconds = run([str(source), str(out), "--vision-tower", str(tower)])
        print(f"source: {total / 1e9:.2f} GB, largest shard {largest / 1e9:.2f} GB")
        print(f"time: {seconds:.0f} s ({total / seconds / 1e6:.0f} MB/s)")
        print(f"peak memory: {peak / 1e9:.2f} GB, of which the idle command {idle / 1e9:.2f} GB")
        print(f"peak / largest shard: {peak / largest:.2f}")
    finally:
        for folder in (source, out, tower):
            shutil.rmtree(folder, ignore_errors=True)


def make_source(recipe: str, source: Path, tower: Path, random_layers: int, kind: str) -> tuple[int, int]:
    """A stage III checkpoint in bf16, in the original's shards of 5 GB; bytes of the largest and of all."""
    plan = load_recipe(recipe)
    config = stage_config(plan, list(plan.stages)[-1])
    with torch.device("meta"):
        model = MoeLlavaForConditionalGeneration(config)
    names = original_names(model)
    specs = {name: (tuple(tensor.shape), torch.bfloat16) for name, tensor in names.items()}

    def tensors():
        for name, (shape, dtype) in specs.items():
            layer = int(name.split("layers.")[1].split(".")[0]) if name.startswith("model.layers.") else 0
            tensor = torch.zeros(shape, dtype=dtype)
            yield name, tensor.uniform_(-0.02, 0.02) if layer < random_layers else tensor

    source.mkdir(parents=True)
    tower.mkdir()
    write_model(source, specs, tensors(), shard_bytes=5 * 10**9)
    shards = sorted(source.glob("*.safetensors"))
    if kind == "bin":
        shards = [as_bin(shard) for shard in shards]
    for shard in shards:
        subprocess.run(["fallocate", "--dig-holes", str(shard)], check=False)
    (source / "config.json").write_text(json.dumps(original_config(model, "a-tower")))
    config.vision_config.save_pretrained(tower)
    CLIPImageProcessor().save_pretrained(tower)
    sizes = [shard.stat().st_size for shard in shards]
    return max(sizes), sum(sizes)


def as_bin(shard: Path) -> Path:
    """The same tensors as torch saves them, mapped while they are written."""
    path = shard.with_name(f"pytorch_{shard.stem}.bin")
    torch.save(load_file(shard), path)
    shard.unlink()
    (shard.parent / "model.safetensors.index.json").unlink(missing_ok=True)
    return path


def run(arguments: list[str]) -> tuple[int, float]:
    """Peak memory in bytes and seconds of one conversion by the command."""
    started = time.perf_counter()
    # Read by the process itself: what the kernel tells a parent counts the parent's own memory before `exec`.
    code = "import sys; from moe_llava.cli import main; main(sys.argv[1:])\n"
    code += "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    done = subprocess.run([sys.executable, "-c", code, "convert", *arguments], stdout=subprocess.PIPE, text=True)
    peak = int(done.stdout.split("VmHWM:")[1].split()[0])
    return peak * 1024, time.perf_counter() - started


if __name__ == "__main__":
    main()
