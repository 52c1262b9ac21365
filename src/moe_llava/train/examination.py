"""Questions that a model answers while it trains, in any layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.recipe import Evaluation
from moe_llava.train import processes
from moe_llava.train.layout import whole_model
from moe_llava.train.trainer import MoeTrainer

Examine = Callable[[MoeLlavaForConditionalGeneration, MoeLlavaProcessor, Evaluation], float]


class Examination(TrainerCallback):
    """Every `evaluate.every` steps and at the end the first process answers, while the others wait.

    Where the model is shared out it answers with a gathered copy: generation calls parts of a model outside its forward
    pass, which FSDP does not gather.
    """

    def __init__(
        self,
        trainer: MoeTrainer,
        processor: MoeLlavaProcessor,
        evaluation: Evaluation,
        examine: Examine,
        metrics: Path,
    ) -> None:
        self.trainer = trainer
        self.processor = processor
        self.evaluation = evaluation
        self.examine = examine
        self.metrics = metrics

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self.evaluation.every and state.global_step != state.max_steps:
            return
        model = whole_model(self.trainer.model)
        if model is not None and processes.is_first():
            training = model.training
            accuracy = self.examine(model.eval(), self.processor, self.evaluation)
            model.train(training)
            with self.metrics.open("a") as file:
                file.write(json.dumps({"step": state.global_step, "accuracy": accuracy}) + "\n")
        processes.wait()
