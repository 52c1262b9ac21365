"""A thin sub-class of transformers' Trainer: exact losses, rates by group, crash-safe checkpoints, routing log."""

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer

from moe_llava.model.balance import first_choices, stack_real_tokens
from moe_llava.model.config import moe_layers
from moe_llava.model.moe_llava import MoeLlavaForConditionalGeneration
from moe_llava.train import snapshot
from moe_llava.train.health import RoutingHealth
from moe_llava.train.stages import TrainingGroup

SCHEDULE = "scheduler.pt"


class MoeTrainer(Trainer):
    """Trains `groups` of a MoE-LLaVA.

    The loss of a step does not depend on how its samples are cut into micro-batches and processes. The language loss
    is divided by the supervised tokens of the whole step. The balance loss is no sum over tokens, so it is given the
    first choices of the whole step: reduced over processes, and with accumulation counted in a pass without gradients
    before the step (its cost: one forward pass a micro-batch).

    `skipped` counts the rows that a stream left out, on all processes, since this run began.
    """

    loss_is_scaled_for_ga = True
    model: MoeLlavaForConditionalGeneration

    def __init__(self, *, groups: list[TrainingGroup], sampler: Sampler[int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # A weight is cast once a pass: to keep the casts would cost half the model again, and undo its sharing out.
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        self._groups = groups
        self._sampler = sampler
        self._step_counts: Tensor | None = None
        self._skipped_here = 0
        self.skipped = 0
        self._writing: str | None = None
        self._start_interval()

    def _start_interval(self) -> None:
        text_config = self.model.config.text_config
        self._health = (
            RoutingHealth(getattr(text_config, "num_experts_per_tok", 1)) if moe_layers(text_config) else None
        )
        self._language_loss = 0.0
        self._interval = (time.perf_counter(), 0, 0)

    # Optimizer and order of samples

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                [{"params": list(group.parameters), "lr": group.lr, "name": group.name} for group in self._groups],
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        return self._sampler or super()._get_train_sampler(train_dataset)

    # Loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        seconds, tokens, steps = self._interval
        self._interval = (seconds, tokens, steps + 1)
        self._skipped_here += sum(int(batch.pop("skipped", 0)) for batch in batches)
        self._step_counts = None
        if len(batches) > 1 and self._balances:
            self._step_counts = self._count_first_choices(batches)
        return batches, items

    @property
    def _balances(self) -> bool:
        text_config = self.model.config.text_config
        return bool(moe_layers(text_config)) and bool(
            text_config.router_aux_loss_coef or getattr(text_config, "router_z_loss_coef", 0.0)
        )

    @torch.no_grad()
    def _count_first_choices(self, batches: list[dict[str, Tensor]]) -> Tensor:
        counts = []
        for batch in batches:
            inputs = {name: value for name, value in self._prepare_inputs(batch).items() if name != "labels"}
            with self.compute_loss_context_manager():
                outputs = self.model(**inputs, output_router_logits=True, use_cache=False, logits_to_keep=1)
            counts.append(first_choices(stack_real_tokens(outputs.router_logits, inputs["attention_mask"])))
        return self._reduced(torch.stack(counts).sum(dim=0))

    def _reduced(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum") if self.accelerator.num_processes > 1 else tensor

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch, skip_logits=True, use_cache=False)
        loss = outputs.language_loss
        if outputs.router_logits:
            real = stack_real_tokens(outputs.router_logits, inputs["attention_mask"])
            counts = self._step_counts
            if counts is None and self.accelerator.num_processes > 1:
                counts = self._reduced(first_choices(real))
            _, router_loss = self.model.router_losses(real, counts)
            loss = loss + router_loss
            assert self._health is not None
            self._health.update(real)
        seconds, tokens, steps = self._interval
        self._interval = (seconds, tokens + int(inputs["attention_mask"].sum()), steps)
        self._language_loss += outputs.language_loss.detach().item()
        # Gradients are averaged over processes, while each process holds its share of a sum.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    # Log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._interval_figures()}
            if self._health and (warning := self._health.warning()):
                logs["warning"] = warning  # type: ignore[assignment]
            self._start_interval()
        super().log(logs, start_time)

    def _interval_figures(self) -> dict[str, float]:
        started, tokens, steps = self._interval
        here = [self._language_loss, float(tokens), float(self._skipped_here)]
        sums = self._reduced(torch.tensor(here, device=self.args.device)).tolist()
        self.skipped = int(sums[2])
        figures = {
            "language_loss": sums[0] / max(steps, 1),
            "tokens_per_second": sums[1] / (time.perf_counter() - started),
        }
        if self.skipped:
            figures["skipped_rows"] = self.skipped
        if self._health:
            if self.accelerator.num_processes > 1:
                self._health.reduce(self._reduced)
            figures |= self._health.summary()
        return figures

    # Checkpoints

    def _get_output_dir(self, trial: Any = None) -> str:
        return self._writing or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Write beside, then rename: a checkpoint folder is whole or absent."""
        name = f"checkpoint-{self.state.global_step}"
        folder = Path(self.args.output_dir or "")
        self._writing = str(folder / ".writing")
        try:
            if self.args.should_save:
                shutil.rmtree(folder / ".writing", ignore_errors=True)  # what a killed run left
                (folder / ".writing" / name).mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self._save_progress(folder / ".writing" / name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                shutil.rmtree(folder / name, ignore_errors=True)
                (folder / ".writing" / name).rename(folder / name)
                for older in checkpoints(folder)[:-1]:
                    shutil.rmtree(older)
        except OSError as error:
            raise OSError(
                f"Could not write {folder / name}: {error}. The last good checkpoint is untouched: "
                "make room, then run the same command with --resume."
            ) from error
        finally:
            self._writing = None
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Nothing: weights are written with the optimizer, see `_save_progress`."""

    def _save_progress(self, folder: Path) -> None:
        """What trains is all that differs from the stage's starting point, which is on disk already."""
        snapshot.save(folder, self.model, self._plain_optimizer())
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULE)
        self._save_rng_state(str(folder))

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """Without accelerate's wrapper."""
        assert self.optimizer is not None
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        snapshot.load_weights(Path(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.lr_scheduler is not None
        snapshot.load_optimizer(Path(checkpoint), self.model, self._plain_optimizer())
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULE, weights_only=True))


def checkpoints(folder: Path) -> list[Path]:
    """Whole training checkpoints in a folder, oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def optimizer_steps(num_samples: int, batch_size: int, epochs: float) -> int:
    """Steps of `epochs` passes over the samples; the last batch of a pass may be smaller."""
    return max(1, math.ceil(epochs * math.ceil(num_samples / batch_size)))
