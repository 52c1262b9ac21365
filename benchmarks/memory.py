"""The planner's memory against the peaks of real training steps: several models, precisions, and shares.

    python benchmarks/memory.py --out memory.json

Each case is a process of its own that trains random weights for three steps with the library's own trainer; its peak is
the largest resident memory less what it was before the model was made.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CASES = {
    "llama, small": {"width": 384, "layers": 6, "vocabulary": 8192, "train": "dense"},
    "llama": {"width": 768, "layers": 12, "vocabulary": 16384, "train": "dense"},
    "llama, checkpointing": {
        "width": 768,
        "layers": 12,
        "vocabulary": 16384,
        "train": "dense",
        "checkpointing": True,
    },
    "llama, bf16": {"width": 768, "layers": 12, "vocabulary": 16384, "train": "dense", "precision": "bf16"},
    "llama x4": {"width": 768, "layers": 12, "vocabulary": 16384, "train": "sparse"},
    "llama x4, accumulation": {
        "width": 768,
        "layers": 12,
        "vocabulary": 16384,
        "train": "sparse",
        "accumulate": 2,
    },
    "llama x4, bf16, checkpointing": {
        "width": 768,
        "layers": 12,
        "vocabulary": 16384,
        "train": "sparse",
        "precision": "bf16",
        "checkpointing": True,
    },
    "phi x4": {"family": "phi", "width": 768, "layers": 12, "vocabulary": 16384, "train": "sparse"},
    "stablelm, projector alone": {
        "family": "stablelm",
        "width": 1280,
        "layers": 16,
        "vocabulary": 32768,
        "train": "projector",
    },
    "qwen2, large vocabulary": {
        "family": "qwen2",
        "width": 640,
        "layers": 8,
        "vocabulary": 100352,
        "train": "dense",
    },
}
TOKENS, SAMPLES, IMAGE_TOKENS = 320, 4, 64
TRAIN = {
    "dense": {"projector": 1e-4, "language_model": 1e-4},
    "sparse": {"projector": 1e-4, "ffn": 1e-4, "experts": 1e-4, "router": 1e-4},
    "projector": {"projector": 1e-4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="also write the figures here, as JSON")
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(CASES[options.case])))
        return
    rows = []
    for name in CASES:
        if not options.only or options.only in name:
            environment = {
                **os.environ,
                "MALLOC_MMAP_THRESHOLD_": "65536",
                "MALLOC_TRIM_THRESHOLD_": "65536",
                "MALLOC_ARENA_MAX": "1",
            }
            command = [sys.executable, __file__, "--case", name]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            rows.append({"case": name, **json.loads(done.stdout.splitlines()[-1])})
            print(table_row(rows[-1]), flush=True)
    worst = max(abs(row["predicted"] / row["measured"] - 1) for row in rows)
    print(f"largest error {100 * worst:.1f} %")
    if options.out:
        Path(options.out).write_text(json.dumps({"rows": rows, "largest_error": worst}, indent=2) + "\n")


def table_row(row: dict) -> str:
    error = 100 * (row["predicted"] / row["measured"] - 1)
    parts = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in row["parts"].items() if size)
    return (
        f"| {row['case']} | {row['measured'] / 2**20:.0f} | {row['predicted'] / 2**20:.0f} | {error:+.1f} % | {parts} |"
    )


def run_case(case: dict) -> dict:
    """Train one case for three steps; bytes measured and predicted."""
    import torch
    from transformers import AutoConfig, CLIPVisionConfig

    from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
    from moe_llava.model.config import sparse_text_config
    from moe_llava.recipe import Distributed, Recipe
    from moe_llava.train.memory import Batch, Sizes, device_memory, owners_of
    from moe_llava.train.probe import probe
    from moe_llava.train.run import build_trainer
    from moe_llava.train.stages import prepare

    width, accumulate = case["width"], case.get("accumulate", 1)
    heads = width // 64
    text = AutoConfig.for_model(
        case.get("family", "llama"),
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 8 * 8,
        vocab_size=case["vocabulary"],
        num_hidden_layers=case["layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
    )
    if case["train"] == "sparse":
        text = sparse_text_config(text)
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=7
    )
    config = MoeLlavaConfig(
        text_config=text.to_dict(),
        vision_config=tower,
        image_token_id=0,
        image_seq_length=IMAGE_TOKENS,
        vision_hidden_size=64,
        vision_prefix_tokens=1,
    )
    fields = {
        "train": TRAIN[case["train"]],
        "data": [{"path": "none"}],
        "batch_size": SAMPLES * accumulate,
        "micro_batch_size": SAMPLES,
        "steps": 3,
        "precision": case.get("precision", "fp32"),
        "gradient_checkpointing": case.get("checkpointing", False),
        "group_by_length": False,
        "save_every": 1000,
        "log_every": 1000,
        "starts_from": "nothing",
    }
    folder = tempfile.mkdtemp()
    recipe = Recipe.model_validate({"name": "memory", "output": folder, "stages": {"measured": fields}})
    stage = recipe.stages["measured"]
    samples = [sample(number, case["vocabulary"]) for number in range(3 * SAMPLES * accumulate)]
    bytes_of_layers = probe(config, stage)
    warm_up(torch)
    before = resident("VmRSS")
    model = MoeLlavaForConditionalGeneration(config)
    owners = owners_of(model)
    groups, _ = prepare(model, stage.train)
    sizes = Sizes.of(model, {id(one) for group in groups for one in group.parameters}, owners)
    recipe.folder("measured").mkdir()
    trainer = build_trainer(recipe, "measured", model, groups, samples, pad_token_id=0)  # type: ignore[arg-type]
    trainer.args.save_strategy = "no"
    trainer.train()
    measured = resident("VmHWM") - before
    shutil.rmtree(folder)
    text_tokens = TOKENS - IMAGE_TOKENS
    batch = Batch(SAMPLES, TOKENS, text_tokens - 1, accumulates=accumulate > 1)
    memory = device_memory(config, stage, sizes, bytes_of_layers, batch, Distributed(), 1)
    return {
        "measured": measured,
        "predicted": memory.total,
        "parts": vars(memory),
        "parameters": sum(sizes.parts.values()),
    }


def sample(number: int, vocabulary: int) -> dict:
    import torch

    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(1, vocabulary, (TOKENS,), generator=generator)
    ids[:IMAGE_TOKENS] = 0
    labels = ids.clone()
    labels[: IMAGE_TOKENS + 1] = -100
    return {"input_ids": ids, "labels": labels, "image_features": torch.randn(1, IMAGE_TOKENS, 64, generator=generator)}


def warm_up(torch: Any) -> None:
    """Load kernels and thread pools before counting."""
    layer = torch.nn.Linear(64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(8, 64)).float().sum().backward()
    torch.optim.AdamW(layer.parameters()).step()
    torch.nn.functional.scaled_dot_product_attention(*(torch.randn(1, 2, 8, 8) for _ in range(3)))


def resident(field: str) -> int:
    """Bytes of resident memory of this process: now (`VmRSS`) or at most (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status does not say")


if __name__ == "__main__":
    main()
