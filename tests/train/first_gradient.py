"""Run the first step of a tiny recipe's sparse stage and save its gradients: alone, or as one of several processes."""

import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from transformers import TrainerCallback

from moe_llava.recipe import load_recipe
from moe_llava.train import processes
from moe_llava.train.run import build_dataset, build_trainer
from moe_llava.train.stages import prepare
from moe_llava.train.start import build_start


class SaveGradients(TrainerCallback):
    def __init__(self, model: torch.nn.Module, path: Path) -> None:
        self.model, self.path = model, path

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and not self.path.exists():
            gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
            save_file(gradients, self.path)


def main(recipe: str, path: str, overrides: dict[str, str]) -> None:
    torch.set_num_threads(1)
    loaded = load_recipe(recipe, {"stages.sparsify.steps": "1", "stages.sparsify.max_grad_norm": "1e9", **overrides})
    processes.join()
    start = build_start(loaded, "sparsify", Console(quiet=True))
    dataset, _ = build_dataset(loaded, loaded.stages["sparsify"], start, Console(quiet=True))
    model = start.shared_out()
    groups, _ = prepare(model, loaded.stages["sparsify"].train)
    trainer = build_trainer(loaded, "sparsify", model, groups, dataset, start.processor.tokenizer.pad_token_id)
    trainer.add_callback(SaveGradients(model, Path(path)))
    trainer.train()
    # Who leaves before the others have heard all breaks their connection. The group is left standing: to destroy it may
    # wait, with Python's lock held, for a thread that waits for that lock.
    processes.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], dict(item.split("=", 1) for item in sys.argv[3:]))
